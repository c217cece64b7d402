//! `llama-mesh` on the command line.

use std::process::{Command, Output};

use integration_tests::sandbox::{PATIENCE, Process, executable};
use serde_json::Value;

fn llama_mesh(args: &[&str]) -> Output {
    // The model is in the cache already: this does not fetch.
    integration_tests::packaged_model();
    Command::new(executable()).args(args).output().expect("the executable starts")
}

fn json(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

#[test]
fn chat_answers_and_shuts_down() {
    let question = "What is the capital of France?";
    let output = llama_mesh(&["chat", question, "--temperature", "0", "--max-tokens", "24"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("Paris"), "{answer}");
    assert!(error.contains("TTFT") && error.contains("tok/s"), "{error}");
}

#[test]
fn a_conversation_on_the_terminal_has_history_and_stops_at_ctrl_c() {
    integration_tests::packaged_model();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/services/terminal.py");
    let status =
        Command::new("python3").arg(script).arg(executable()).status().expect("Python starts");
    assert!(status.success(), "terminal.py failed");
}

#[test]
fn three_chips_say_the_same() {
    let ask = |more: &[&str]| {
        let base = ["chat", "Name a colour.", "--temperature", "0", "--max-tokens", "16", "--json"];
        json(&llama_mesh(&[&base, more].concat()))
    };
    let (one, three) = (ask(&[]), ask(&["--chips", "3"]));
    assert_eq!(one["text"], three["text"]);
    assert!(one["completion_tokens"].as_u64().is_some_and(|n| n > 0));
}

#[test]
fn chips_that_do_not_fit_are_refused_by_naming_what_fits() {
    for chips in ["2", "8"] {
        let output = llama_mesh(&["chat", "hi", "--chips", chips]);
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("1 or 3"), "{error}");
    }
}

#[test]
fn bad_usage_has_its_own_exit_codes() {
    assert_eq!(llama_mesh(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(llama_mesh(&["worker", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(llama_mesh(&["gateway", "--no-such-flag"]).status.code(), Some(2));
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let file = scratch.path().join("bad.toml");
    std::fs::write(&file, "no_such_key = 1\n").expect("writable");
    let file = file.display().to_string();
    for service in ["worker", "gateway"] {
        let output = llama_mesh(&[service, "--config", &file]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains("no_such_key"), "{error}");
    }
    let output = llama_mesh(&["chat", "hi", "--model", "/no/such/model"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/model"));
}

#[test]
fn up_serves_until_sigterm() {
    integration_tests::packaged_model();
    let mut up = Process::start(&["up", "--http", "127.0.0.1:0", "--json"], &[]);
    let endpoints: Value =
        serde_json::from_str(&up.line_starting_with("{")).expect("one JSON object");
    let url = endpoints["http"].as_str().expect("an address");
    let models = llama_mesh(&["models", "--url", url, "--json"]);
    assert_eq!(json(&models)["data"][0]["id"], endpoints["model"]);
    let chat = llama_mesh(&["chat", "hi", "--url", url, "--max-tokens", "4", "--json"]);
    assert!(json(&chat)["completion_tokens"].as_u64().is_some_and(|n| n > 0));
    up.signal("TERM");
    assert_eq!(up.wait(PATIENCE).code(), Some(0));
    let gone = llama_mesh(&["models", "--url", url]);
    assert_eq!(gone.status.code(), Some(1));
}
