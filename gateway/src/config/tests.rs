//! Shipped files, precedence and refusals.

use std::path::Path;

use common::config::load_from;
use serde_json::json;

use super::*;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/gateway.toml");

fn with_file(toml: &str) -> Result<GatewayConfig, ConfigError> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("gateway.toml");
    std::fs::write(&path, toml).unwrap();
    let config: GatewayConfig = load_from(Some(&path), ENV_PREFIX, [], Vec::new())?;
    config.validate()?;
    Ok(config)
}

#[test]
fn the_shipped_file_holds_the_defaults() {
    let config: GatewayConfig =
        load_from(Some(Path::new(SHIPPED)), ENV_PREFIX, [], Vec::new()).unwrap();
    config.validate().unwrap();
    assert_eq!(config, GatewayConfig::default());
}

#[test]
fn the_shipped_file_names_every_key() {
    let text = std::fs::read_to_string(SHIPPED).unwrap();
    let json = serde_json::to_value(GatewayConfig::default()).unwrap();
    let mut names = Vec::new();
    for (name, value) in json.as_object().unwrap() {
        names.push(name.clone());
        names.extend(value.as_object().into_iter().flat_map(|room| room.keys().cloned()));
    }
    for name in names {
        let said = text.contains(&format!("\n{name} = "))
            || text.contains(&format!("\n# {name} = "))
            || text.contains(&format!("\n[{name}]"));
        assert!(said, "{name} is not in {SHIPPED}");
    }
}

#[test]
fn flags_go_over_environment_over_file() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("gateway.toml");
    std::fs::write(&path, "workers = [\"a:1\"]\n[listen]\nhttp = \"127.0.0.1:1\"").unwrap();
    let environment = [
        ("LLAMA_MESH_GATEWAY__LISTEN__HTTP".into(), "127.0.0.1:2".into()),
        ("LLAMA_MESH_GATEWAY__SHUTDOWN__GRACE_SECONDS".into(), "7".into()),
        ("LLAMA_MESH_GATEWAY__WORKERS".into(), "[\"b:2\", \"unix:/c\"]".into()),
    ];
    let flags = vec![("listen.http".to_owned(), json!("127.0.0.1:3"))];
    let config: GatewayConfig = load_from(Some(&path), ENV_PREFIX, environment, flags).unwrap();
    assert_eq!(config.listen.http.port(), 3);
    assert_eq!(config.shutdown.grace_seconds, 7);
    assert_eq!(config.workers, ["b:2", "unix:/c"]);
    config.validate().unwrap();
}

#[test]
fn what_cannot_be_used_is_refused_by_its_key() {
    for (toml, key) in [
        ("workers = [\"nowhere\"]", "workers[0]"),
        ("workers = [\"a:1\", \"unix:\"]", "workers[1]"),
        ("workers = [\"http://a:0\"]", "workers[0]"),
        ("workers = [\"https://a:1\"]", "workers[0]"),
        ("served_model_name = \"\"", "served_model_name"),
        ("[listen]\nhttp = \"somewhere\"", "listen.http"),
        ("[listen]\nmax_body_bytes = 1", "listen.max_body_bytes"),
        ("[listen]\nmax_total_body_bytes = 1024", "listen.max_total_body_bytes"),
        ("[listen]\nhead_timeout_ms = 0", "listen.head_timeout_ms"),
        ("[listen]\nallowed_hosts = [\"\"]", "listen.allowed_hosts[0]"),
        ("[listen]\nport = 1", "port"),
        ("[limits]\nmax_n = 129", "limits.max_n"),
        ("[limits]\nmax_prompts = 0", "limits.max_prompts"),
        ("[queue]\nmax_wait_ms = 0", "queue.max_wait_ms"),
        ("[pool]\nstall_timeout_ms = 0", "pool.stall_timeout_ms"),
        ("[shutdown]\ngrace_seconds = -1", "grace_seconds"),
        ("[telemetry]\ncolour = true", "colour"),
    ] {
        let error = with_file(toml).expect_err(toml).to_string();
        assert!(error.contains(key), "{error:?} does not name {key}");
    }
}

#[test]
fn limits_are_written_over_a_models() {
    let mut limits = RequestLimits::new("tiny", 100, 64);
    let before = limits.clone();
    LimitsConfig::default().apply(&mut limits);
    assert_eq!(limits, before, "the defaults change nothing");
    LimitsConfig { max_model_len: Some(1000), ..Default::default() }.apply(&mut limits);
    assert_eq!(limits.max_model_len, 64, "no more than the model has");
    LimitsConfig { max_model_len: Some(32), max_n: 2, ..Default::default() }.apply(&mut limits);
    assert_eq!((limits.max_model_len, limits.max_n), (32, 2));
}
