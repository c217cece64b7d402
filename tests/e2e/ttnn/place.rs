//! Where these tests run: the package, the descriptors, a model for 8 chips.

use std::path::{Path, PathBuf};

use integration_tests::byte_tokenizer;
use llama::LlamaConfig;
use llama::tiny::{self, TinyModel};

/// Mock devices by their file in `deploy/mock`.
pub(crate) fn cluster(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mock").join(name);
    let path = path.canonicalize().expect("the descriptor is in the tree");
    path.display().to_string()
}

/// The folder with the package.
///
/// # Panics
/// When nobody said where it is: a test without it would show nothing.
#[expect(clippy::disallowed_methods, reason = "set up by the script that calls this test")]
pub(crate) fn site_packages() -> String {
    std::env::var("LLAMA_MESH_TTNN_SITE_PACKAGES")
        .expect("LLAMA_MESH_TTNN_SITE_PACKAGES is set: eval \"$(deploy/mock/setup.sh)\"")
}

/// A Meta directory whose every width is whole tiles on 8 chips.
pub(crate) fn model(scratch: &Path) -> PathBuf {
    let config = LlamaConfig {
        hidden_size: 512,
        intermediate_size: 512,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 64,
        vocab_size: 512,
        rope_theta: 500_000.0,
        max_position_embeddings: 8192,
        ..tiny::config()
    };
    let directory = scratch.join("Tiny-Instruct");
    TinyModel::new(config, 1).write_meta(&directory, 1).expect("writable");
    byte_tokenizer::write(&directory).expect("writable");
    directory
}

/// Environment of a worker on `mock`; its locks are in `locks`.
pub(crate) fn environment(mock: &str, locks: &Path) -> Vec<(String, String)> {
    let pairs = [
        ("TT_METAL_MOCK_CLUSTER_DESC_PATH", cluster(mock)),
        ("TT_METAL_LOGGER_LEVEL", "FATAL".to_owned()),
        ("TT_METAL_LOGS_PATH", locks.display().to_string()),
        ("LOGURU_LEVEL", "ERROR".to_owned()),
        ("LLAMA_MESH_WORKER__TTNN__SITE_PACKAGES", site_packages()),
        ("LLAMA_MESH_WORKER__TTNN__LOCK_DIR", locks.display().to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Flags of a worker on all eight chips, a row of whose cores dispatches.
pub(crate) const ON_T3K: [&str; 8] = [
    "--device",
    "T3K",
    "--dispatch",
    "worker",
    "--max-model-len",
    "1024",
    "--max-num-batched-tokens",
    "256",
];
