//! Sizes that come out, and what is refused.

use llama::Llama3Size;
use llama::tiny::family;

use super::*;
use crate::config::{DeviceKind, KvConfig, KvDType, OptimizationsKind};

const PLENTY: HostMemory = HostMemory { available: Some(1 << 40), weights_are_mapped: false };

/// 2 layers, K and V, 2 heads of 16: 256 bytes a token in bf16.
fn sized(config: &WorkerConfig) -> Result<Limits, WorkerError> {
    limits(config, &llama::tiny::config(), config.mesh().unwrap(), PLENTY)
}

fn simulated(device: DeviceKind) -> WorkerConfig {
    WorkerConfig { device, simulate: true, ..WorkerConfig::default() }
}

fn refusal(config: &WorkerConfig, model: &LlamaConfig, host: HostMemory) -> String {
    limits(config, model, config.mesh().unwrap(), host).unwrap_err().to_string()
}

#[test]
fn the_cache_is_as_large_as_is_useful_unless_asked() {
    let limits = sized(&WorkerConfig { max_num_seqs: 3, ..WorkerConfig::default() }).unwrap();
    assert_eq!((limits.max_model_len, limits.num_kv_blocks), (512, 3 * 512 / 32));
    let kv = KvConfig { memory_mib: Some(1), ..KvConfig::default() };
    let limits = sized(&WorkerConfig { kv, ..WorkerConfig::default() }).unwrap();
    assert_eq!(limits.num_kv_blocks, (1 << 20) / (256 * 32));
    // Fewer bits, more blocks.
    let dtype = Some(KvDType::Bfp8);
    let kv = KvConfig { memory_mib: Some(1), dtype, ..KvConfig::default() };
    let limits = sized(&WorkerConfig { kv, ..WorkerConfig::default() }).unwrap();
    assert_eq!(limits.num_kv_blocks, (1 << 20) / (136 * 32));
}

#[test]
fn sequences_are_as_long_as_the_cache_holds() {
    let kv = KvConfig { blocks: Some(4), ..KvConfig::default() };
    let limits = sized(&WorkerConfig { kv: kv.clone(), ..WorkerConfig::default() }).unwrap();
    assert_eq!(limits.max_model_len, 128);
    let asked = WorkerConfig { max_model_len: Some(129), kv, ..WorkerConfig::default() };
    let text = sized(&asked).unwrap_err().to_string();
    assert!(text.contains("129") && text.contains("128"), "{text}");
    let kv = KvConfig { memory_mib: Some(0), ..KvConfig::default() };
    assert!(sized(&WorkerConfig { kv, ..WorkerConfig::default() }).is_err());
    let beyond = WorkerConfig { max_model_len: Some(513), ..WorkerConfig::default() };
    assert!(sized(&beyond).unwrap_err().to_string().contains("512"));
}

#[test]
fn llama_70b_takes_8_chips_of_whatever_kind() {
    let chips = |n| WorkerConfig { chips: Some(n), ..WorkerConfig::default() };
    let few = [chips(1), chips(4), simulated(DeviceKind::N150), simulated(DeviceKind::N300)];
    for config in few {
        let error =
            limits(&config, &family::config(Llama3Size::B70), config.mesh().unwrap(), PLENTY)
                .unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        assert!(text.contains("Llama 3.1 70B needs 8 chips"), "{text}");
        assert!(text.contains("--device T3K") && text.contains("--simulate"), "{text}");
    }
    for config in [chips(8), simulated(DeviceKind::T3K)] {
        limits(&config, &family::config(Llama3Size::B70), config.mesh().unwrap(), PLENTY).unwrap();
    }
}

#[test]
fn a_simulated_chip_holds_no_more_than_a_real_one() {
    let f32 = WorkerConfig { optimizations: OptimizationsKind::F32, ..simulated(DeviceKind::N150) };
    let text = refusal(&f32, &family::config(Llama3Size::B8), PLENTY);
    for part in ["on each chip of N150", "12.47 GB", "--optimizations performance"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The KV cache that is made unasked leaves the chip's memory as it is.
    let config = WorkerConfig { max_num_seqs: 64, ..simulated(DeviceKind::N150) };
    let limits =
        limits(&config, &family::config(Llama3Size::B8), config.mesh().unwrap(), PLENTY).unwrap();
    assert!(limits.num_kv_blocks > 0 && limits.max_model_len <= 32 * 1024);
    let kv = KvConfig { blocks: Some(4096), ..KvConfig::default() };
    let text =
        refusal(&WorkerConfig { kv, ..config.clone() }, &family::config(Llama3Size::B8), PLENTY);
    assert!(text.contains("KV cache of 131072 tokens 9.13 GB"), "{text}");
    assert!(text.contains("--device N300"), "{text}");
    let long = WorkerConfig { max_model_len: Some(65_536), ..config };
    let text = refusal(&long, &family::config(Llama3Size::B8), PLENTY);
    assert!(text.contains("on N150 is 32768"), "{text}");
}

#[test]
fn this_machine_must_hold_every_chip() {
    let gib = |n: u64| HostMemory { available: Some(n << 30), weights_are_mapped: false };
    let config = WorkerConfig::default();
    // 8B in bfp4 and bfp8 takes about 7.2 GB.
    let text = refusal(&config, &family::config(Llama3Size::B8), gib(6));
    assert!(text.contains("of this machine's memory"), "{text}");
    assert!(text.contains("6.44 GB"), "{text}");
    let cpu = config.mesh().unwrap();
    let limits_with = |host| limits(&config, &family::config(Llama3Size::B8), cpu, host);
    let enough = limits_with(gib(9)).unwrap();
    assert!(enough.max_model_len > 1024);
    // What is mapped from a file need not fit.
    let mapped = HostMemory { weights_are_mapped: true, ..gib(6) };
    assert!(limits_with(mapped).unwrap().max_model_len > 1024);
    // Where nobody says how much there is, nothing is refused.
    let unknown = HostMemory { available: None, weights_are_mapped: false };
    limits_with(unknown).unwrap();
    // Eight simulated chips hold the model once, not eight times.
    let t3k = simulated(DeviceKind::T3K);
    limits(&t3k, &family::config(Llama3Size::B8), t3k.mesh().unwrap(), gib(10)).unwrap();
}

#[test]
fn the_cpu_mesh_takes_the_bytes_that_are_planned() {
    use llama::Layout;
    use mesh::{AttentionShape, DType, DenseMatrix, KvCacheShape, Mesh as _};
    let (rows, cols) = (272, 528);
    let matrix = DenseMatrix::new("w", cols, vec![0.5; rows * cols]);
    for num_chips in [1, 2] {
        let mut mesh = mesh_cpu::CpuMesh::new(num_chips, 1).unwrap();
        for dtype in [DType::F32, DType::Bf16, DType::Bfp8, DType::Bfp4] {
            let weight = mesh.load_column_parallel(&[&matrix], dtype).unwrap();
            let planned = Layout::Squares.bytes([cols, rows / num_chips], dtype);
            let held = weight.0.bytes() as u64;
            let planned = planned * num_chips as u64;
            // Buffers are aligned, and end in some slack.
            assert!(held >= planned && held - planned <= 4096 * num_chips as u64, "{dtype}");
        }
    }
    let model = llama::tiny::config();
    let config = WorkerConfig { chips: Some(2), ..WorkerConfig::default() };
    let choice = config.mesh().unwrap();
    let sizing = Sizing::new(&config, &model, choice, PLENTY).unwrap();
    let planned = 2 * sizing.on(choice.device(), 512, 16).unwrap().cache_bytes();
    let shape = KvCacheShape {
        num_layers: model.num_hidden_layers,
        num_blocks: 16,
        block_size: 32,
        dtype: config.policy(&model).kv_cache,
    };
    let attention = AttentionShape {
        num_attention_heads: model.num_attention_heads,
        num_key_value_heads: model.num_key_value_heads,
        head_dim: model.head_dim,
    };
    let mut mesh = mesh_cpu::CpuMesh::new(2, 1).unwrap();
    let held = mesh.new_kv_cache(shape, attention).unwrap().bytes() as u64;
    assert!(held >= planned && held - planned <= 4096 * 4, "{held} {planned}");
}

#[test]
fn a_card_is_bound_by_its_own_memory_alone() {
    let model = family::config(Llama3Size::B8);
    let card = MeshChoice::Card { device: Device::N300, dispatch: llama::Dispatch::Ethernet };
    let tiny_host = HostMemory { available: Some(1 << 20), weights_are_mapped: false };
    let config = WorkerConfig { max_num_batched_tokens: Some(2048), ..WorkerConfig::default() };
    let sized = limits(&config, &model, card, tiny_host).unwrap();
    assert_eq!(sized.max_model_len, 128 << 10);
    // All that the weights leave, and one block less: no gibibyte is held to.
    let block_bytes = u64::from(sized.kv_block_size) * 32 * 2 * 1024 * 17 / 16 / 2;
    assert!(u64::from(sized.num_kv_blocks) * block_bytes > 4 << 30, "{sized:?}");
    let kv = KvConfig { blocks: Some(sized.num_kv_blocks + 1), ..KvConfig::default() };
    let text = limits(&WorkerConfig { kv, ..config }, &model, card, tiny_host).unwrap_err();
    assert!(text.to_string().contains("N300"), "{text}");
}
