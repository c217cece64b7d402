//! `llama-mesh eval` on the packaged model.

use std::path::Path;
use std::process::{Command, Output};

use integration_tests::sandbox::executable;
use serde_json::Value;

fn eval(args: &[&str]) -> Output {
    // The model is in the cache already: this does not fetch.
    integration_tests::packaged_model();
    Command::new(executable()).arg("eval").args(args).output().expect("the executable starts")
}

/// Runs an evaluation that must end with this code, and reads its object.
fn report(args: &[&str], code: i32) -> Value {
    let output = eval(&[args, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    serde_json::from_slice(&output.stdout).expect("one JSON object on standard output")
}

fn make_reference(directory: &Path) -> String {
    let path = directory.join("reference.json").display().to_string();
    let made = report(&["--make-reference", &path, "--total-length", "129"], 0);
    assert_eq!(
        (&made["tokens"], &made["reference"]["optimizations"]),
        (&129.into(), &"f32".into())
    );
    assert!(made["perplexity"].as_f64().is_some_and(|x| x > 1.0), "{made}");
    path
}

#[test]
fn the_default_policy_passes_against_a_reference_and_fails_a_wrong_one() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = make_reference(directory.path());
    let args = ["--reference", &path, "--prefill", "96", "--compare-optimizations", "f32"];
    let thresholds = ["--min-top1", "85", "--min-top5", "96", "--min-pcc", "0.99"];
    let found = report(&[&args[..], &thresholds].concat(), 0);
    assert_eq!((&found["passed"], &found["decoded"]["positions"]), (&true.into(), &32.into()));
    assert_eq!(found["prefilled"]["positions"], 96);
    // The table knows the packaged model.
    assert_eq!(found["row"]["model"], "SmolLM2-135M-Instruct");
    let [own, of_reference] = ["perplexity", "reference_perplexity"]
        .map(|key| found["decoded"][key].as_f64().expect("a number"));
    assert!((own / of_reference - 1.0).abs() < 0.05, "{own} and {of_reference}");
    assert!(found["pcc"]["mean"].as_f64().is_some_and(|x| x < 1.0), "two policies, not one");

    // F32 against F32 is the same, prefilled or decoded.
    let same = ["--reference", &path, "--optimizations", "f32", "--prefill", "112"];
    let found = report(&[&same[..], &["--min-top1", "100", "--min-top5", "100"]].concat(), 0);
    let [own, of_reference] = ["perplexity", "reference_perplexity"]
        .map(|key| found["decoded"][key].as_f64().expect("a number"));
    assert!((own / of_reference - 1.0).abs() < 1e-9, "{own} and {of_reference}");

    let text = std::fs::read_to_string(&path).expect("readable");
    let damaged = directory.path().join("damaged.json").display().to_string();
    std::fs::write(&damaged, text.replacen("\"top5\":[[", "\"top5\":[[1", 1)).expect("writable");
    let output = eval(&["--reference", &damaged]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("damaged.json") && error.contains("is damaged"), "{error}");
}

#[test]
fn the_originals_files_are_read_and_their_tokens_are_held_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |name: &str| root.join("golden/refpt").join(name).display().to_string();
    // Ids of another vocabulary.
    let output = eval(&["--reference", &file("tensor.refpt")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("128") && error.contains("49152"), "{error}");
    // Ids that are none of the model's choices: read, measured, failed.
    let args = ["--reference", &file("small.refpt"), "--prefill", "2", "--verbose"];
    let output = eval(&args);
    let (text, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}{error}");
    for expected in ["of unknown origin", "FAILED", "! position", "3 decoded"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn wrong_usage_is_refused() {
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--min-pcc", "0.9"], 2, "--compare-optimizations"),
        (&["--min-top1", "101"], 2, "0 to 100"),
        (&["--make-reference", "out.json", "--reference", "in.json"], 2, "--reference"),
        (&["--reference", "/no/such/file"], 1, "/no/such/file"),
    ];
    for (args, code, expected) in cases {
        let output = eval(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}
