//! `llama-mesh demo` on the packaged model.

use std::process::{Command, Output};

use integration_tests::golden::Golden;
use integration_tests::sandbox::executable;
use serde_json::{Value, json};

fn demo(args: &[&str]) -> Output {
    // The model is in the cache already: this does not fetch.
    integration_tests::packaged_model();
    Command::new(executable()).arg("demo").args(args).output().expect("the executable starts")
}

fn report(args: &[&str]) -> Value {
    let output = demo(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

fn users(batch: &Value) -> &[Value] {
    batch["users"].as_array().expect("a list")
}

/// Writes a prompt file and returns its path.
fn prompt_file(directory: &tempfile::TempDir, prompts: &[&str]) -> String {
    let path = directory.path().join("prompts.json");
    let entries: Vec<Value> = prompts.iter().map(|prompt| json!({ "prompt": prompt })).collect();
    std::fs::write(&path, Value::from(entries).to_string()).expect("writable");
    path.display().to_string()
}

#[test]
fn one_instruct_batch_reports_what_it_measured() {
    let report = report(&["-k", "instruct and 1_batch", "--iterations", "8"]);
    assert_eq!((&report["mode"], &report["long"]), (&json!("instruct"), &json!(false)));
    assert_eq!(report["optimizations"], "performance");
    let batches = report["batches"].as_array().expect("a list");
    let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
    let [user] = users(batch) else { panic!("one user") };
    // About 128 tokens, within the chat template's.
    assert!(user["prompt_tokens"].as_u64().is_some_and(|n| (100..=180).contains(&n)), "{user}");
    assert_eq!(user["token_ids"].as_array().map(Vec::len), Some(9), "{user}");
    assert_eq!(user["finish_reason"], "length");
    assert!(!user["text"].as_str().unwrap_or_default().trim().is_empty());
    assert_eq!(batch["decode_steps"], 8);
    for measured in ["ttft_ms", "prefill_tokens_per_s", "first_decode_step_ms"] {
        assert!(batch[measured].as_f64().is_some_and(|x| x > 0.0), "{measured}: {batch}");
    }
    let speeds = ["decode_tokens_per_s_per_user", "decode_tokens_per_s"].map(|key| &batch[key]);
    assert!(speeds[0].as_f64().is_some_and(|x| x > 0.0));
    assert_eq!(speeds[0], speeds[1], "one user is all users");
    assert!(report["load_ms"].as_f64().is_some_and(|x| x > 0.0));
    assert!(batch["original"]["prefill_time_to_token_ms"].is_null(), "not defined for one user");
}

#[test]
fn two_general_batches_rotate_the_prompts_and_leave_nothing_behind() {
    let args = ["-k", "general and 2_batch", "--batch-size", "3", "--iterations", "6"];
    let report = report(&args);
    assert_eq!(report["mode"], "general");
    let [first, second] = [0, 1].map(|batch| users(&report["batches"][batch]));
    let prompts = |users: &[Value]| -> Vec<Value> {
        users.iter().map(|user| user["prompt"].clone()).collect()
    };
    assert_eq!(prompts(first), [0, 1, 2].map(Value::from));
    assert_eq!(prompts(second), [1, 2, 3].map(Value::from));
    // Who had the same prompt in the other batch had the same answer, beside
    // other users and on blocks that these had filled.
    for user in 0..2 {
        assert_eq!(second[user]["token_ids"], first[user + 1]["token_ids"]);
    }
    assert_ne!(first[0]["token_ids"], first[1]["token_ids"]);
}

#[test]
fn answers_are_llama_cpps_alone_and_for_32_users() {
    let golden = Golden::load();
    let chat = &golden.chats[0];
    let directory = tempfile::tempdir().expect("a scratch directory");
    let file = prompt_file(&directory, &[&chat.question]);
    let args = ["--prompts", &file, "--optimizations", "f32", "--ignore-eos", "--iterations", "7"];
    let alone = report(&args);
    let answer = &users(&alone["batches"][0])[0];
    assert_eq!(answer["prompt_tokens"], chat.prompt.len());
    assert_eq!(answer["token_ids"], json!(chat.greedy[..8]));
    let crowd = report(&[&args[..], &["--batch-size", "32"]].concat());
    let crowd = users(&crowd["batches"][0]);
    assert_eq!(crowd.len(), 32);
    assert!(crowd.iter().all(|user| user["token_ids"] == answer["token_ids"]));
}

#[test]
fn a_long_prompt_is_refused_or_clipped_never_cut_in_silence() {
    let args = ["-k", "long-accuracy", "--iterations", "2", "--max-seq-len", "400"];
    let refused = demo(&args);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("at most 398") && error.contains("--clip"), "{error}");
    let report = report(&[&args[..], &["--clip"]].concat());
    assert_eq!((&report["optimizations"], &report["long"]), (&json!("accuracy"), &json!(true)));
    let user = &users(&report["batches"][0])[0];
    assert_eq!(user["prompt_tokens"], 398);
    assert!(user["clipped_tokens"].as_u64().is_some_and(|n| n > 3000), "{user}");
    assert_eq!(user["token_ids"].as_array().map(Vec::len), Some(3));
}

#[test]
fn people_see_text_phases_and_a_table() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let file = prompt_file(&directory, &["What is the capital of France?"]);
    let args = ["--prompts", &file, "--iterations", "24"];
    let live = demo(&[&args[..], &["--verbose", "--warm-up"]].concat());
    let text = String::from_utf8_lossy(&live.stdout);
    let error = String::from_utf8_lossy(&live.stderr);
    assert!(live.status.success(), "{error}");
    let (answer, table) = text.rsplit_once("\n\n").expect("a blank line before the table");
    assert!(answer.contains("Paris"), "{text}");
    for row in ["TTFT, mean", "prefill", "first decode step", "tok/s/user", "warm-up"] {
        assert!(table.contains(row), "{row}: {table}");
    }
    let phases = [
        "Initializing device",
        "Loading weights",
        "Starting inference...",
        "Starting prefill...",
        "Starting decode...",
    ];
    let places: Vec<_> = phases.iter().map(|phase| error.find(phase)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{error}");
    assert!(error.contains(" tok/s/user (") && error.contains(" @ "), "{error}");
    // The answer ends by itself, well before 24 iterations.
    assert!(!error.contains("Iteration 24"), "{error}");

    let pair = demo(&[&args[..], &["--batch-size", "2"]].concat());
    let text = String::from_utf8_lossy(&pair.stdout);
    assert_eq!(text.matches("output: ").count(), 2, "{text}");
    assert_eq!(text.matches("Paris").count(), 2, "{text}");
    assert!(text.contains("prefill_time_to_token"), "{text}");
}

#[test]
fn wrong_usage_says_what_there_is() {
    let cases: [(&[&str], i32, &str); 8] = [
        (&["-k", "no_such_run"], 2, "instruct_weights-long-performance"),
        (&["-k", "instruct"], 2, "instruct_weights-2_batch"),
        (&["-k", "instruct and"], 2, "where a word should be"),
        (&["-k", "long-accuracy", "--optimizations", "f32"], 2, "f32"),
        (&["-k", "long-accuracy", "--mode", "general"], 2, "--mode"),
        (&["--batch-size", "33"], 2, "1..=32"),
        (&["--chips", "2"], 64, "1 or 3"),
        (&["--max-seq-len", "10000"], 1, "made for 8192"),
    ];
    for (args, code, expected) in cases {
        let output = demo(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

#[test]
fn the_environment_and_the_formats_are_a_workers() {
    let with_device = |name: &str, args: &[&str]| {
        integration_tests::packaged_model();
        let mut command = Command::new(executable());
        command.arg("demo").args(args).env("MESH_DEVICE", name);
        command.output().expect("the executable starts")
    };
    // A build with cards opens the first.
    let without_cards = [("N150", "--simulate")].into_iter().filter(|_| !cfg!(feature = "ttnn"));
    for (name, expected) in without_cards.chain([("H100", "MESH_DEVICE")]) {
        let output = with_device(name, &["--iterations", "1"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{name}: {error}");
        assert!(error.contains(expected), "{name}: {error}");
    }
    let output = with_device("N300", &["--iterations", "1", "--simulate"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("fit 1 or 3 chips, not 2"), "{error}");
    // Other formats of keys and values are other logits, and soon another answer.
    let ids = |dtype| {
        let report = report(&["--iterations", "64", "--kv-dtype", dtype, "--ignore-eos"]);
        users(&report["batches"][0])[0]["token_ids"].clone()
    };
    assert_ne!(ids("bfp8"), ids("bf16"));
}
