//! The arithmetic of the table, on times made by hand.

use super::*;
use crate::demo::batch::Answer;

fn encoded(length: usize) -> Encoded {
    Encoded { text: String::new(), ids: vec![1; length], clipped: 0 }
}

fn at(ms: &[u64]) -> Vec<Duration> {
    ms.iter().copied().map(Duration::from_millis).collect()
}

fn close(found: Option<f64>, expected: f64) {
    let found = found.unwrap();
    assert!((found - expected).abs() < 1e-9 * expected, "{found} is not {expected}");
}

#[test]
fn honest_totals_and_the_originals_formulas_are_apart() {
    let run = BatchRun {
        answers: Vec::new(),
        prefill: at(&[300, 100, 200]),
        steps: at(&[50, 10, 10, 20]),
        kept: vec![3, 3, 2, 2],
    };
    let prompts = [encoded(100), encoded(200), encoded(300)];
    let prompts: Vec<&Encoded> = prompts.iter().collect();
    let original = Original::new(&run.prefill, &prompts);
    close(original.prefill_time_to_token_ms, 150.0);
    // 3 users × 512 padded tokens in 0.3 s.
    close(original.prefill_tokens_per_s, 5120.0);
    let alone = Original::new(&run.prefill[..1], &prompts[..1]);
    assert_eq!(alone.prefill_time_to_token_ms, None);
    assert_eq!(alone.prefill_tokens_per_s, None);

    let answer = Answer { ids: vec![0; 4], stopped_by: None };
    let stopped = Answer { ids: vec![0; 2], stopped_by: Some(9) };
    let run = BatchRun { answers: vec![answer.clone(), answer, stopped], ..run };
    let report = BatchReport::new(&[0, 1, 2], &prompts, run, &tokenizer());
    assert_eq!((report.prompt_tokens, report.generated_tokens), (600, 10));
    close(Some(report.ttft_ms), 200.0);
    close(Some(report.ttft_last_user_ms), 600.0);
    close(report.prefill_tokens_per_s, 1000.0);
    close(report.first_decode_step_ms, 50.0);
    close(report.decode_tokens_per_s_per_user, 75.0);
    close(report.decode_tokens_per_s, 175.0);
    close(report.computed_tokens_per_s, 225.0);
    let reasons: Vec<_> = report.users.iter().map(|user| user.finish_reason).collect();
    assert_eq!(reasons, ["length", "length", "stop"]);
}

#[test]
fn what_was_not_measured_is_not_there() {
    let prompts = [encoded(3)];
    let prompts: Vec<&Encoded> = prompts.iter().collect();
    for steps in [vec![], at(&[7])] {
        let run = BatchRun {
            answers: vec![Answer { ids: vec![0], stopped_by: None }],
            prefill: at(&[5]),
            kept: vec![1; steps.len()],
            steps,
        };
        let report = BatchReport::new(&[0], &prompts, run, &tokenizer());
        assert_eq!(report.decode_tokens_per_s_per_user, None);
        assert_eq!(report.decode_tokens_per_s, None);
    }
    assert_eq!(per_second(1.0, Duration::ZERO), None);
}

#[test]
fn prompts_are_padded_as_the_original_does() {
    let cases = [(1, 128), (128, 128), (129, 256), (1000, 1024), (5000, 8192)];
    for (length, expected) in cases {
        assert_eq!(padded(length), expected);
    }
}

/// A tokenizer of single bytes.
fn tokenizer() -> Tokenizer {
    let directory = tempfile::tempdir().unwrap();
    crate::driver::tests::write_byte_tokenizer(directory.path());
    let text = gateway::text::TextModel::from_hugging_face(directory.path()).unwrap();
    std::sync::Arc::into_inner(text.tokenizer).unwrap()
}
