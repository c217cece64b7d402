//! Devices and what fits them: refused before a weight is read, and planned
//! before a weight is there.

use std::path::Path;
use std::process::{Command, Output};

use integration_tests::sandbox::executable;
use llama::Llama3Size;
use llama::tiny::family;
use serde_json::Value;

/// Some 2.6 · 10^12 weights.
const HUGE: &str = r#"{"dim": 32768, "n_layers": 200, "n_heads": 256, "n_kv_heads": 8,
    "vocab_size": 128256, "multiple_of": 4096, "norm_eps": 1e-5, "use_scaled_rope": true}"#;

fn params(size: Llama3Size) -> String {
    family::params_json(size).to_string()
}

/// A Meta directory with the files that say what the model is. Its weights are
/// a hole of 17 GB that nobody may try to read.
fn directory(params: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a scratch directory");
    std::fs::write(directory.path().join("params.json"), params).expect("writable");
    std::fs::write(directory.path().join("tokenizer.model"), "").expect("writable");
    let weights = std::fs::File::create(directory.path().join("consolidated.00.pth"));
    weights.expect("writable").set_len(17_000_000_000).expect("a sparse file");
    directory
}

fn run(model: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(executable());
    for name in ["MESH_DEVICE", "FAKE_DEVICE", "WH_ARCH_YAML"] {
        command.env_remove(name);
    }
    let command = command.args(args).env("LLAMA_DIR", model).envs(environment.iter().copied());
    command.output().expect("the executable starts")
}

/// The worker must refuse, with exit code 64 and all of `parts` in its words.
fn refuse(params: &str, flags: &[&str], environment: &[(&str, &str)], parts: &[&str]) {
    let model = directory(params);
    let args: Vec<&str> =
        ["worker", "--listen", "127.0.0.1:0"].iter().chain(flags).copied().collect();
    let output = run(model.path(), &args, environment);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{flags:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{flags:?}: {part:?} is not in {error}");
    }
}

#[test]
fn llama_70b_is_refused_on_fewer_than_8_chips_of_any_kind() {
    let parts = ["Llama 3.1 70B needs 8 chips", "--device T3K", "--simulate"];
    for flags in [
        &[] as &[&str],
        &["--chips", "4"],
        &["--device", "N150", "--simulate"],
        &["--device", "N300", "--simulate"],
    ] {
        refuse(&params(Llama3Size::B70), flags, &[], &parts);
    }
}

#[test]
fn what_a_chip_or_this_machine_cannot_hold_is_refused_with_the_numbers() {
    let simulated = ["--device", "N150", "--simulate", "--optimizations", "f32"];
    let parts = ["on each chip of N150", "12.47 GB", "weights", "--optimizations performance"];
    refuse(&params(Llama3Size::B8), &simulated, &[], &parts);
    let long = ["--device", "N150", "--simulate", "--max-model-len", "65536"];
    refuse(&params(Llama3Size::B8), &long, &[], &["max_model_len is 65536", "on N150 is 32768"]);
    let parts = ["of this machine's memory", "weights", "KV cache"];
    refuse(HUGE, &["--chips", "8", "--optimizations", "f32"], &[], &parts);
    refuse(
        &params(Llama3Size::B8),
        &["--chips", "3"],
        &[],
        &["8 KV heads", "fit 1, 2, 4 or 8 chips, not 3"],
    );
}

#[test]
fn the_environment_names_the_device_and_is_refused_by_name() {
    refuse(
        &params(Llama3Size::B8),
        &[],
        &[("MESH_DEVICE", "TG")],
        &["MESH_DEVICE", "\"TG\"", "T3000"],
    );
    refuse(&params(Llama3Size::B8), &[], &[("FAKE_DEVICE", "x")], &["FAKE_DEVICE"]);
    // A build with cards opens it.
    if !cfg!(feature = "ttnn") {
        refuse(
            &params(Llama3Size::B8),
            &[],
            &[("MESH_DEVICE", "N300")],
            &["MESH_DEVICE", "--simulate"],
        );
    }
    refuse(
        &params(Llama3Size::B70),
        &["--simulate"],
        &[("MESH_DEVICE", "N300")],
        &["needs 8 chips, not 2"],
    );
    // A flag goes over it.
    let flags = ["--device", "N150", "--simulate"];
    refuse(&params(Llama3Size::B70), &flags, &[("MESH_DEVICE", "T3K")], &["needs 8 chips, not 1"]);
}

fn plan(
    params: &str,
    flags: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, Value, String) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    std::fs::write(directory.path().join("params.json"), params).expect("writable");
    let args: Vec<&str> = ["plan", "--json"].iter().chain(flags).copied().collect();
    let output = run(directory.path(), &args, environment);
    let object = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), object, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_plan_needs_no_weights_and_its_exit_code_says_whether_it_fits() {
    let ethernet = ("WH_ARCH_YAML", "/x/wormhole_b0_80_arch_eth_dispatch.yaml");
    let (code, object, error) =
        plan(&params(Llama3Size::B70), &[], &[("MESH_DEVICE", "T3000"), ethernet]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!((&object["device"], &object["num_chips"]), (&"T3K".into(), &8.into()));
    assert_eq!(object["compute_grid"], serde_json::json!([8, 8]));
    assert_eq!(object["fits"], true);

    let (code, object, error) = plan(
        &params(Llama3Size::B8),
        &["--device", "N300"],
        &[("WH_ARCH_YAML", "wormhole_b0_80_arch.yaml")],
    );
    assert_eq!((code, &object["compute_grid"]), (Some(0), &serde_json::json!([8, 7])), "{error}");
    assert!(error.contains("8x7"), "{error}");
    let (_, object, error) = plan(&params(Llama3Size::B8), &["--device", "N300"], &[]);
    assert!(error.contains("WH_ARCH_YAML is unset"), "{error}");
    assert_eq!(object["dispatch"], "ethernet");

    let too_large = ["--device", "N150", "--optimizations", "bf16"];
    let (code, object, error) = plan(&params(Llama3Size::B8), &too_large, &[]);
    assert_eq!((code, &object["fits"]), (Some(1), &false.into()));
    assert!(error.contains("does not fit") && error.contains("12.47 GB"), "{error}");
    let (code, object, error) = plan(&params(Llama3Size::B70), &["--device", "N150"], &[]);
    assert_eq!((code, object), (Some(1), Value::Null));
    assert!(error.contains("needs 8 chips"), "{error}");

    assert_eq!(plan(&params(Llama3Size::B8), &["--device", "H100"], &[]).0, Some(2));
    assert_eq!(plan(&params(Llama3Size::B8), &[], &[("MESH_DEVICE", "TG")]).0, Some(64));
    let (code, _, error) = plan("{}", &["--device", "T3K"], &[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("params.json") && error.contains("dim"), "{error}");
}
