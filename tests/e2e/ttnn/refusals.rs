//! What cannot be opened is refused in words that say what to do.

use std::path::Path;
use std::process::{Command, Output};

use integration_tests::sandbox::{Process, executable};

use crate::place::{ON_T3K, environment, model};

fn worker(model: &Path, flags: &[&str], environment: &[(String, String)]) -> Output {
    let mut command = Command::new(executable());
    command.args(["worker", "--listen", "127.0.0.1:0", "--model"]).arg(model).args(flags);
    for name in ["MESH_DEVICE", "FAKE_DEVICE", "WH_ARCH_YAML", "PYTHONPATH"] {
        command.env_remove(name);
    }
    let pairs = environment.iter().map(|(name, value)| (name, value));
    command.envs(pairs).output().expect("the executable starts")
}

/// It must end with `code` and all of `parts` in its words.
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn a_second_worker_on_a_board_is_refused_and_told_who_has_it() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let model = model(scratch.path());
    let environment = environment("t3k.yaml", scratch.path());
    let pairs: Vec<_> = environment.iter().map(|(k, v)| (&**k, &**v)).collect();
    let path = model.display().to_string();
    let mut args = vec!["worker", "--model", &path, "--listen", "127.0.0.1:0"];
    args.extend(ON_T3K);
    let mut first = Process::start(&args, &pairs);
    first.line_starting_with("ready ");
    let holder = format!("in use by process {}", first.id());
    refused(&worker(&model, &ON_T3K, &environment), 1, &[&holder, "stop that worker"]);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let model = model(scratch.path());
    let parts = ["8 chips were asked for", "has 1", "choose the device that is there"];
    let on_n150 = environment("n150.yaml", scratch.path());
    refused(&worker(&model, &ON_T3K, &on_n150), 1, &parts);
}

#[test]
fn a_package_that_is_not_there_is_refused() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let model = model(scratch.path());
    let empty = scratch.path().join("empty");
    std::fs::create_dir(&empty).expect("writable");
    let mut environment = environment("t3k.yaml", scratch.path());
    for (name, value) in &mut environment {
        if name.ends_with("SITE_PACKAGES") {
            *value = empty.display().to_string();
        }
    }
    let parts = ["ttnn cannot be imported", "pip install ttnn=="];
    refused(&worker(&model, &ON_T3K, &environment), 1, &parts);
    for (_, value) in &mut environment {
        *value = value.replace("/empty", "/nowhere");
    }
    refused(&worker(&model, &ON_T3K, &environment), 1, &["/nowhere is not a folder"]);
}

#[test]
fn settings_that_a_card_cannot_follow_are_refused_before_anything_is_opened() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let model = model(scratch.path());
    let environment = environment("t3k.yaml", scratch.path());
    let cases: [(&[&str], &str); 3] = [
        (&["--optimizations", "f32"], "f32 is for the CPU mesh"),
        (&["--kv-block-size", "48"], "multiple of 32"),
        (&["--max-num-seqs", "33"], "at most 32"),
    ];
    for (flags, part) in cases {
        let flags: Vec<&str> = ON_T3K.iter().chain(flags).copied().collect();
        refused(&worker(&model, &flags, &environment), 64, &[part]);
    }
}
