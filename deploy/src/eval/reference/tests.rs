//! Reference files: what is written is read, what is wrong is named.

use super::*;

fn reference() -> Reference {
    let origin = Origin {
        model: "tiny".to_owned(),
        weight_fingerprint: "w".to_owned(),
        tokenizer_fingerprint: "t".to_owned(),
        optimizations: "f32".to_owned(),
        device: "CPU".to_owned(),
        num_chips: 1,
    };
    Reference {
        origin: Some(origin),
        tokens: vec![1, 2, 3],
        top5: vec![[2, 3, 4, 5, 6], [9, 8, 7, 6, 5]],
        next_logprobs: vec![-0.5, -1.5],
    }
}

#[test]
fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("reference.json");
    reference().write(&path).unwrap();
    assert_eq!(Reference::read(&path).unwrap(), reference());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left over");
    let nowhere = directory.path().join("no/such/directory");
    assert!(format!("{:#}", reference().write(&nowhere).unwrap_err()).contains("no/such"));
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("reference.json");
    reference().write(&path).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{good}");
        good.replacen(from, to, 1)
    };
    let cases = [
        (changed("[9,8,", "[8,9,"), "damaged"),
        (changed("[1,2,3]", "[1,2,4]"), "damaged"),
        (changed("\"version\":1", "\"version\":2"), "version is 2"),
        (changed(FORMAT, "other"), "format is \"other\""),
        (changed("\"tokens\"", "\"more\":1,\"tokens\""), "more"),
        (changed("[9,8,7,6,5]", "[9,8,7,6]"), "length"),
        (good[..good.len() / 2].to_owned(), "neither"),
        (String::new(), "neither"),
        ("PK\u{3}\u{4}".to_owned(), "reference.json"),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, &text).unwrap();
        let error = format!("{:#}", Reference::read(&path).unwrap_err());
        assert!(error.contains(expected) && error.contains("reference.json"), "{text}: {error}");
    }
    let parts = [
        Reference { tokens: vec![1], top5: vec![], next_logprobs: vec![], ..reference() },
        Reference { tokens: vec![1, 2, 3, 4], ..reference() },
        Reference { next_logprobs: vec![-1.0], ..reference() },
    ];
    for part in parts {
        part.write(&path).unwrap();
        assert!(Reference::read(&path).is_err());
    }
}

#[test]
fn a_reference_is_for_one_tokenizer() {
    let reference = reference();
    reference.check_tokenizer("t", 10).unwrap();
    let error = reference.check_tokenizer("other", 10).unwrap_err().to_string();
    assert!(error.contains("tokenizer t") && error.contains("other"), "{error}");
    let error = reference.check_tokenizer("t", 9).unwrap_err().to_string();
    assert!(error.contains("token 9") && error.contains("vocabulary has 9"), "{error}");
    let unknown = Reference { origin: None, ..reference };
    unknown.check_tokenizer("anything", 10).unwrap();
}

#[test]
fn perplexity_is_over_the_asked_positions() {
    let close = |found: Option<f64>, expected: f64| {
        assert!((found.unwrap() - expected).abs() < 1e-12);
    };
    close(reference().perplexity(0..2), 1.0_f64.exp());
    close(reference().perplexity(1..9), 1.5_f64.exp());
    assert_eq!(reference().perplexity(2..3), None);
    assert_eq!(Reference { next_logprobs: vec![], ..reference() }.perplexity(0..2), None);
}
