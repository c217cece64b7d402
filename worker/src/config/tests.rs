//! Which setting wins, and which is refused.

use super::*;

use serde_json::json;

fn read(
    toml: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, serde_json::Value)],
) -> Result<WorkerConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("worker.toml");
    std::fs::write(&path, toml).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let config: WorkerConfig =
        common::config::load_from(Some(&path), ENV_PREFIX, environment, flags)?;
    config.validate()?;
    Ok(config)
}

#[test]
fn the_shipped_file_says_the_defaults() {
    let shipped = include_str!("../../../deploy/worker.toml");
    assert_eq!(read(shipped, &[], &[]).unwrap(), WorkerConfig::default());
    // What is commented out there must be readable too.
    let mut uncommented = String::new();
    for line in shipped.lines() {
        let setting = line.strip_prefix("# ").filter(|rest| {
            rest.split_once(" = ").is_some_and(|(key, _)| {
                key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            })
        });
        uncommented.push_str(setting.unwrap_or(line));
        uncommented.push('\n');
    }
    let all = read(&uncommented, &[], &[]).unwrap();
    assert!(all.model.is_some() && all.kv.blocks.is_some() && all.threads.is_some());
}

#[test]
fn flags_go_over_the_environment_over_the_file() {
    let toml = "max_num_seqs = 3\nchips = 2\nlisten = \"127.0.0.1:1\"";
    let environment = [
        ("LLAMA_MESH_WORKER__CHIPS", "4"),
        ("LLAMA_MESH_WORKER__LISTEN", "127.0.0.1:2"),
        ("LLAMA_MESH_WORKER__KV__BLOCK_SIZE", "16"),
        ("LLAMA_MESH_WORKER__TELEMETRY__LOG_FORMAT", "json"),
        ("LLAMA_MESH_WORKER__DEVICE", "cpu"),
    ];
    let config = read(toml, &environment, &[("listen", json!("127.0.0.1:3"))]).unwrap();
    assert_eq!((config.max_num_seqs, config.chips, config.kv.block_size), (3, Some(4), 16));
    assert_eq!((config.listen.as_str(), config.device), ("127.0.0.1:3", DeviceKind::Cpu));
    assert_eq!(config.telemetry.log_format, common::telemetry::LogFormat::Json);
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let cases: [(&str, &[&str]); 18] = [
        ("[ttnn]\ndispatch = \"noc\"", &["noc"]),
        ("max_num_sequences = 3", &["max_num_sequences"]),
        ("max_num_seqs = \"many\"", &["max_num_seqs"]),
        ("max_num_seqs = 0", &["max_num_seqs", "at least 1"]),
        ("max_num_seqs = 300", &["max_num_batched_tokens", "256", "300"]),
        ("max_num_seqs = 5000", &["max_num_seqs", "1024"]),
        ("threads = 0", &["threads"]),
        ("threads = 100000", &["threads", "1024"]),
        ("max_num_seqs = 512\nmax_logprobs = 513", &["max_logprobs", "513", "512"]),
        ("chips = 9", &["chips", "1 to 8"]),
        ("device = \"N300\"\nsimulate = true\nchips = 1", &["chips", "N300", "2"]),
        ("device = \"H100\"", &["H100"]),
        ("listen = \"0.0.0.0:50051\"", &["listen", "insecure_listen", "TLS"]),
        ("listen = \"nowhere\"", &["listen", "nowhere"]),
        ("metrics_listen = \"nowhere\"", &["metrics_listen"]),
        ("[kv]\nblocks = 0", &["kv.blocks"]),
        ("[kv]\ndtype = \"f32\"", &["kv.dtype", "optimizations f32", "bfp8"]),
        ("[kv]\ndtype = \"bfp4\"", &["bfp4"]),
    ];
    for (toml, wanted) in cases {
        let text = read(toml, &[], &[]).unwrap_err().to_string();
        for wanted in wanted {
            assert!(text.contains(wanted), "{toml}: {text:?} does not name {wanted:?}");
        }
    }
    // A build with cards takes it for one.
    let card = read("device = \"N300\"\noptimizations = \"f32\"", &[], &[]).unwrap_err();
    let wanted = if cfg!(feature = "ttnn") { "CPU mesh" } else { "--features ttnn" };
    assert!(card.to_string().contains(wanted), "{card}");
    let unknown = read("", &[("LLAMA_MESH_WORKER__CHIP", "1")], &[]).unwrap_err();
    assert!(unknown.to_string().contains("chip"), "{unknown}");
}

#[test]
fn a_simulated_device_has_the_chips_of_the_real_one() {
    for (device, num_chips) in [("N150", 1), ("N300", 2), ("T3K", 8)] {
        let toml = format!("device = \"{device}\"\nsimulate = true");
        let simulates = Some(device.parse().unwrap());
        let mesh = read(&toml, &[], &[]).unwrap().mesh().unwrap();
        assert_eq!(mesh, MeshChoice::Cpu { num_chips, simulates });
        assert_eq!(mesh.device().to_string(), device);
    }
    let open = read("listen = \"0.0.0.0:1\"\ninsecure_listen = true", &[], &[]).unwrap();
    assert!(!open.listen_address().unwrap().is_local());
}

#[test]
fn the_cache_has_the_format_of_the_preset_unless_another_is_asked_for() {
    use mesh::DType;
    let of = |toml: &str| read(toml, &[], &[]).unwrap().policy(&llama::tiny::config()).kv_cache;
    assert_eq!(of(""), DType::Bf16);
    assert_eq!(of("[kv]\ndtype = \"bfp8\""), DType::Bfp8);
    assert_eq!(of("optimizations = \"f32\""), DType::F32);
    assert_eq!(of("optimizations = \"f32\"\n[kv]\ndtype = \"bf16\""), DType::Bf16);
    assert_eq!(of("optimizations = \"f32\"\n[kv]\ndtype = \"f32\""), DType::F32);
}
