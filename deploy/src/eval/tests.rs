//! Evaluations of a tiny random model, from the command line's flags to the
//! exit code.

use std::path::PathBuf;

use clap::Parser as _;
use llama::LlamaConfig;
use llama::tiny::{self, TinyModel};

use super::*;
use crate::cli::{Cli, Command};
use crate::driver::tests::write_byte_tokenizer;

/// A tiny model with a tokenizer, and a text for it.
struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Self { directory: tempfile::tempdir().unwrap() };
        let config = LlamaConfig { vocab_size: 64, ..tiny::config() };
        TinyModel::new(config, 3).write_hugging_face(&rig.path("model")).unwrap();
        write_byte_tokenizer(&rig.path("model"));
        let text: String = (0..150_u32).map(|n| char::from(b'a' + (n * n % 26) as u8)).collect();
        std::fs::write(rig.path("text.txt"), text).unwrap();
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, flags: &[&str]) -> EvalArgs {
        let model = self.path("model").display().to_string();
        let line = [&["llama-mesh", "eval", "--model", &model], flags].concat();
        let Command::Eval(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("eval")
        };
        args
    }

    fn run(&self, flags: &[&str]) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(run(self.args(flags)))
    }

    /// Flags that name a reference which was made first.
    fn reference(&self) -> [String; 2] {
        let out = self.path("reference.json").display().to_string();
        let text = self.path("text.txt").display().to_string();
        let code = self.run(&["--make-reference", &out, "--text", &text, "--total-length", "101"]);
        assert_eq!(code.unwrap(), ExitCode::SUCCESS);
        ["--reference".to_owned(), out]
    }
}

#[test]
fn a_model_is_its_own_reference() {
    let rig = Rig::new();
    let [flag, file] = rig.reference();
    let made = Reference::read(Path::new(&file)).unwrap();
    assert_eq!((made.tokens.len(), made.top5.len(), made.next_logprobs.len()), (101, 100, 100));
    assert_eq!(made.origin.as_ref().unwrap().optimizations, "f32");
    let perfect =
        [&flag[..], &file, "--optimizations", "f32", "--min-top1", "100", "--min-top5", "100"];
    assert_eq!(rig.run(&perfect).unwrap(), ExitCode::SUCCESS);
    // Prefill and decode give the same rows, so their border does not matter.
    for prefill in ["1", "30", "99"] {
        let code = rig.run(&[&perfect[..], &["--prefill", prefill]].concat());
        assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    }
    // Another policy is held against it, and another number of chips.
    let other = [&flag[..], &file, "--compare-optimizations", "f32", "--min-pcc", "0.5"];
    assert_eq!(rig.run(&other).unwrap(), ExitCode::SUCCESS);
    let exact = [&flag[..], &file, "--compare-optimizations", "f32", "--min-pcc", "1"];
    assert_eq!(rig.run(&exact).unwrap(), ExitCode::FAILURE);
    let chips = [&flag[..], &file, "--compare-chips", "2", "--min-pcc", "0.9999"];
    assert_eq!(rig.run(&chips).unwrap(), ExitCode::SUCCESS);
}

#[test]
fn a_wrong_reference_fails_the_model() {
    let rig = Rig::new();
    let [flag, file] = rig.reference();
    let mut reference = Reference::read(Path::new(&file)).unwrap();
    for row in &mut reference.top5 {
        row.rotate_left(1);
    }
    reference.write(Path::new(&file)).unwrap();
    let flags = [&flag[..], &file, "--optimizations", "f32"];
    let with = |more: &[&str]| rig.run(&[&flags[..], more].concat()).unwrap();
    assert_eq!(with(&["--min-top1", "1"]), ExitCode::FAILURE);
    // Still among the five.
    assert_eq!(with(&["--min-top5", "100"]), ExitCode::SUCCESS);
    assert_eq!(with(&["--min-top5", "100", "--min-top1", "0"]), ExitCode::SUCCESS);
    // Nothing expected: nothing failed.
    assert_eq!(with(&[]), ExitCode::SUCCESS);
}

#[test]
fn without_a_reference_one_is_computed() {
    let rig = Rig::new();
    let text = rig.path("text.txt").display().to_string();
    let flags = ["--text", &text, "--optimizations", "f32", "--min-top1", "100"];
    assert_eq!(rig.run(&flags).unwrap(), ExitCode::SUCCESS);
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let rig = Rig::new();
    let [flag, file] = rig.reference();
    let text = rig.path("text.txt").display().to_string();
    let refused = |flags: &[&str], expected: &str| {
        let error = format!("{:#}", rig.run(flags).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    refused(&["--text", &text, "--total-length", "151"], "150 tokens");
    refused(&[&flag, &file, "--prefill", "90", "--decode", "11"], "after 100 tokens");
    refused(&[&flag, &file, "--prefill", "100"], "0 decoded");
    refused(&[&flag, &file, "--min-pcc", "0.9"], "--compare-optimizations");
    refused(&["--reference", "/no/such/reference"], "/no/such/reference");
    // The tokenizer is another one, and so are its ids.
    let path = rig.path("model/tokenizer_config.json");
    std::fs::write(path, r#"{"eos_token": "z"}"#).unwrap();
    refused(&[&flag, &file], "--make-reference");
}

#[test]
fn the_other_run_differs_in_what_is_named() {
    let rig = Rig::new();
    let other = |flags: &[&str]| rig.args(flags).compared_model();
    assert!(other(&["--chips", "2"]).is_none());
    let model = other(&["--chips", "2", "--compare-optimizations", "f32"]).unwrap();
    assert_eq!((model.chips, model.optimizations.as_deref()), (Some(2), Some("f32")));
    let flags = ["--device", "N300", "--simulate", "--optimizations", "bf16"];
    let model = other(&[&flags[..], &["--compare-device", "CPU"]].concat()).unwrap();
    assert_eq!((model.device.as_deref(), model.simulate, model.chips), (Some("CPU"), false, None));
    assert_eq!(model.optimizations.as_deref(), Some("bf16"));
    let model = other(&[&flags[..], &["--compare-device", "T3K"]].concat()).unwrap();
    assert!(model.simulate);
    let model = other(&["--compare-chips", "8"]).unwrap();
    assert_eq!(model.chips, Some(8));
}
