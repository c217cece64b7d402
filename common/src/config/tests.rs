//! Precedence, refusals and redaction.

use super::*;

use serde_json::json;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: String,
    peers: Vec<String>,
    ratio: f32,
    verbose: bool,
    name: Option<String>,
    kv: Kv,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Kv {
    block_size: u32,
    api_key: Option<Secret<String>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:1".into(),
            peers: Vec::new(),
            ratio: 0.5,
            verbose: false,
            name: None,
            kv: Kv::default(),
        }
    }
}

impl Default for Kv {
    fn default() -> Self {
        Self { block_size: 32, api_key: None }
    }
}

const PREFIX: &str = "LLAMA_MESH_TEST";

fn read(
    toml: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, Json)],
) -> Result<Settings, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("settings.toml");
    std::fs::write(&path, toml).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    load_from(Some(&path), PREFIX, environment, flags)
}

#[test]
fn later_places_win_key_by_key() {
    assert_eq!(read("", &[], &[]).unwrap(), Settings::default());
    let toml = "listen = \"file\"\nratio = 1\n[kv]\nblock_size = 16";
    let environment = [
        ("LLAMA_MESH_TEST__LISTEN", "env"),
        ("LLAMA_MESH_TEST__KV__API_KEY", "sk-1"),
        ("LLAMA_MESH_TEST__VERBOSE", "true"),
        ("LLAMA_MESH_TEST__PEERS", r#"["a", "b"]"#),
        ("LLAMA_MESH_TEST__NAME", "7"),
    ];
    let flags = [("listen", json!("flag")), ("kv.block_size", Json::Null)];
    let settings = read(toml, &environment, &flags).unwrap();
    assert_eq!(settings.listen, "flag");
    assert_eq!(settings.kv.block_size, 16, "a flag that was not given changes nothing");
    assert_eq!(settings.kv.api_key.unwrap().expose(), "sk-1");
    assert_eq!((settings.ratio, settings.verbose), (1.0, true));
    assert_eq!(settings.peers, ["a", "b"]);
    assert_eq!(settings.name.as_deref(), Some("7"));
    let settings = read(toml, &[("LLAMA_MESH_TEST__KV__BLOCK_SIZE", "8")], &[]).unwrap();
    assert_eq!((settings.kv.block_size, settings.listen.as_str()), (8, "file"));
}

#[test]
fn what_is_not_a_setting_is_refused_by_name() {
    let check = |error: ConfigError, wanted: &[&str]| {
        let text = error.to_string();
        for wanted in wanted {
            assert!(text.contains(wanted), "{text:?} does not name {wanted:?}");
        }
    };
    check(read("lisen = \"x\"", &[], &[]).unwrap_err(), &["lisen"]);
    check(read("[kv]\nblocksize = 1", &[], &[]).unwrap_err(), &["blocksize"]);
    check(read("[kv]\nblock_size = \"x\"", &[], &[]).unwrap_err(), &["block_size"]);
    check(read("[kv]\nblock_size = -1", &[], &[]).unwrap_err(), &["block_size"]);
    check(read("listen =", &[], &[]).unwrap_err(), &["TOML"]);
    let env = |name, value| read("", &[(name, value)], &[]).unwrap_err();
    check(env("LLAMA_MESH_TEST__LISEN", "x"), &["lisen"]);
    check(env("LLAMA_MESH_TEST_LISTEN", "x"), &["LLAMA_MESH_TEST_LISTEN", "__"]);
    check(env("LLAMA_MESH_TEST__KV____X", "x"), &["LLAMA_MESH_TEST__KV____X"]);
    check(env("LLAMA_MESH_TEST__VERBOSE", "maybe"), &["verbose", "maybe"]);
    check(env("LLAMA_MESH_TEST__RATIO", "x"), &["ratio", "LLAMA_MESH_TEST__RATIO"]);
    check(env("LLAMA_MESH_TEST__PEERS", "[a]"), &["LLAMA_MESH_TEST__PEERS"]);
    check(read("", &[], &[("nope", json!(1))]).unwrap_err(), &["nope"]);
    let missing = load_from::<Settings>(Some(Path::new("/no/such.toml")), PREFIX, [], vec![]);
    check(missing.unwrap_err(), &["/no/such.toml"]);
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        ("PATH", "/bin"),
        ("LLAMA_MESH_TESTER__X", "x"),
        ("LLAMA_MESH_TEST_PORT", "tcp://10.0.0.1:80"),
        ("LLAMA_MESH_TEST_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("LLAMA_MESH_TEST_SERVICE_HOST", "10.0.0.1"),
    ];
    assert_eq!(read("", &others, &[]).unwrap(), Settings::default());
}

#[test]
fn secrets_are_not_shown() {
    let shown = redacted(&json!({
        "api_keys": ["sk-1", {"value": "sk-2", "rpm": 3}],
        "hf_token": "hf_x", "password": "p", "tls": {"client-secret": "s"},
        "max_num_batched_tokens": 256, "tokenizer": "t.json", "key_file": "/etc/k.pem",
        "monkey": "bananas", "token": "",
    }));
    let text = shown.to_string();
    for hidden in ["sk-1", "sk-2", "hf_x", "\"p\"", "\"s\""] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    for kept in ["256", "t.json", "/etc/k.pem", "bananas", "\"rpm\":3"] {
        assert!(text.contains(kept), "{kept} not in {text}");
    }
    let secret = Secret::new("sk-3".to_owned());
    assert_eq!(format!("{secret:?} {}", json!(secret)), "[redacted] \"[redacted]\"");
}
