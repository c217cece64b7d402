//! Plans of the family, from `params.json` alone.

use std::path::Path;

use clap::Parser as _;
use llama::Llama3Size;
use llama::tiny::family;

use super::*;
use crate::cli::{Cli, Command};

fn args(flags: &[&str]) -> PlanArgs {
    let args = ["llama-mesh", "plan"].into_iter().chain(flags.iter().copied());
    match Cli::try_parse_from(args).expect("parses").command {
        Command::Plan(args) => args,
        other => panic!("{other:?}"),
    }
}

fn planned(size: Llama3Size, flags: &[&str]) -> anyhow::Result<Report> {
    planned_from(&family::params_json(size).to_string(), flags)
}

fn planned_from(params: &str, flags: &[&str]) -> anyhow::Result<Report> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("params.json"), params).expect("writable");
    let args = args(flags);
    let surroundings = Surroundings {
        llama_dir: None,
        devices: DeviceEnvironment::default(),
        host_memory: Some(16 << 30),
    };
    let device = device(&args, &surroundings.devices).map_err(anyhow::Error::msg)?;
    report(&args, directory.path(), device, &surroundings)
}

#[test]
fn plans_are_the_golden_ones() {
    let cases = [
        ("llama-3.1-70b-t3k", Llama3Size::B70, "T3K"),
        ("llama-3.2-3b-n300", Llama3Size::B3, "N300"),
        ("llama-3.1-8b-n150", Llama3Size::B8, "N150"),
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan/golden");
    for (name, params, device) in cases {
        let report = planned(params, &["--device", device]).expect("plans");
        let found = serde_json::to_string_pretty(&json::object(&report)).expect("serializes");
        let path = golden.join(format!("{name}.json"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, found.clone() + "\n").expect("writable");
        }
        let wanted = std::fs::read_to_string(&path).expect("the golden file is committed");
        assert_eq!(found, wanted.trim_end(), "{name}");
    }
}

#[test]
fn a_table_names_every_weight_and_its_total() {
    let report = planned(Llama3Size::B70, &["--device", "t3000"]).expect("plans");
    let text = table::text(&report);
    for part in [
        "Llama 3.1 70B",
        "on T3K: 8 chips, grid 8x8",
        "layers.N.attention.wqkv",
        "[8192, 1280]",
        "layers.N.feed_forward.w1",
        "layers.N.cache_v",
        "all_gather of heads, before wo",
        "x80",
        "Result: fits",
        "39.3 tokens/s/user",
        "not measured",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let one = planned(Llama3Size::B8, &["--device", "N150"]).expect("plans");
    let text = table::text(&one);
    assert!(text.contains("in 4 slices") && !text.contains("Collectives"), "{text}");
}

#[test]
fn what_does_not_fit_is_planned_and_says_so() {
    let flags = ["--device", "N150", "--optimizations", "bf16", "--max-model-len", "2048"];
    let report = planned(Llama3Size::B8, &flags).expect("plans");
    let reason = report.result.as_ref().expect_err("does not fit").to_string();
    assert!(reason.contains("12.47 GB") && reason.contains("--device T3K"), "{reason}");
    let object = json::object(&report);
    assert_eq!((&object["fits"], &object["longest_context"]), (&false.into(), &0.into()));
    assert!(table::text(&report).contains("DOES NOT FIT"));
    // Too many users, and too long a context.
    let many = ["--device", "T3K", "--max-num-seqs", "32", "--max-model-len", "131072"];
    assert!(planned(Llama3Size::B8, &many).expect("plans").result.is_err());
    let long = ["--device", "N150", "--max-model-len", "65536"];
    let error = planned(Llama3Size::B8, &long).expect("plans").result.expect_err("too long");
    assert!(error.to_string().contains("32768; N300 and T3K allow it"), "{error}");
}

#[test]
fn formats_follow_the_flags() {
    let format = |flags: &[&str]| {
        let object = json::object(&planned(Llama3Size::B8, flags).expect("plans"));
        let of = |name: &str| {
            let weights = object["weights"].as_array().expect("a list").iter();
            let found = weights.clone().find(|weight| weight["name"] == name);
            found.expect("there")["format"].as_str().expect("text").to_owned()
        };
        (of("layers.N.feed_forward.w1"), object["caches"][0]["format"].clone())
    };
    assert_eq!(format(&["--device", "T3K"]), ("bfp4".into(), "bfp8".into()));
    let accuracy = ["--device", "T3K", "--optimizations", "accuracy", "--kv-dtype", "bf16"];
    assert_eq!(format(&accuracy), ("bfp8".into(), "bf16".into()));
}

#[test]
fn the_cpu_is_planned_against_this_machines_memory() {
    let report = planned(Llama3Size::B8, &["--device", "CPU", "--chips", "8"]).expect("plans");
    let object = json::object(&report);
    assert_eq!(object["totals"]["memory_is_of"], "host");
    assert_eq!(object["totals"]["memory_bytes"], 16_u64 << 30);
    assert_eq!(object["modelled"]["decode_bound_tokens_per_second"], serde_json::Value::Null);
    assert!(report.result.is_ok());
}

#[test]
fn what_cannot_be_planned_says_why() {
    let refusal =
        |params, flags: &[&str]| planned(params, flags).err().expect("refused").to_string();
    assert!(refusal(Llama3Size::B70, &["--device", "N300"]).contains("needs 8 chips, not 2"));
    assert!(refusal(Llama3Size::B70, &[]).contains("needs 8 chips, not 1"));
    assert!(refusal(Llama3Size::B8, &["--chips", "3"]).contains("fit 1, 2, 4 or 8 chips, not 3"));
    assert!(
        refusal(Llama3Size::B8, &["--device", "N300", "--chips", "3"]).contains("an N300 has 2")
    );
    let empty = planned_from("{}", &[]).err().expect("refused");
    assert!(empty.to_string().contains("params.json"));
    let named = DeviceEnvironment { mesh_device: Some("N300".into()), ..Default::default() };
    assert_eq!(device(&args(&[]), &named), Ok(Device::N300));
    assert_eq!(device(&args(&["--device", "T3K"]), &named), Ok(Device::T3K));
    let wrong = DeviceEnvironment { mesh_device: Some("TG".into()), ..Default::default() };
    assert!(device(&args(&[]), &wrong).expect_err("refused").contains("MESH_DEVICE"));
}
