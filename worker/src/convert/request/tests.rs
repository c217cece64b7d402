//! Every field at and beyond its limit.

use super::*;
use crate::convert::testing::identity;

use proptest::prelude::*;

fn valid() -> wire::Generation {
    wire::Generation {
        prompt_token_ids: vec![1, 2, 3],
        max_new_tokens: 5,
        ..wire::Generation::default()
    }
}

fn refused(change: impl FnOnce(&mut wire::Generation)) -> (Code, String) {
    let mut request = valid();
    change(&mut request);
    let refusal = generation(request, &identity(), Arrival::now()).unwrap_err();
    (refusal.code, refusal.message)
}

fn sampled(sampling: wire::Sampling) -> Result<Generation, Refusal> {
    let request = wire::Generation { sampling: Some(sampling), ..valid() };
    generation(request, &identity(), Arrival::now())
}

#[test]
fn unset_fields_are_neutral_and_the_models_ends_are_added() {
    let checked = generation(valid(), &identity(), Arrival::now()).unwrap();
    assert_eq!(checked.sampling, Sampling::default());
    assert_eq!(checked.stop_token_ids, [2, 250]);
    assert_eq!((checked.deadline, checked.logprobs), (None, None));
    let request = wire::Generation { ignore_eos: true, stop_token_ids: vec![9, 7, 9], ..valid() };
    let checked = generation(request, &identity(), Arrival::now()).unwrap();
    assert_eq!(checked.stop_token_ids, [7, 9]);
}

#[test]
fn the_empty_message_is_refused() {
    let refusal = generation(wire::Generation::default(), &identity(), Arrival::now());
    assert_eq!(refusal.unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn bad_requests_are_refused_by_name_with_value_and_limit() {
    type Change = fn(&mut wire::Generation);
    let cases: [(Change, &[&str]); 17] = [
        (|r| r.prompt_token_ids.clear(), &["prompt_token_ids", "empty"]),
        (|r| r.prompt_token_ids[1] = 256, &["prompt_token_ids[1]", "256"]),
        (|r| r.prompt_token_ids = vec![u32::MAX], &["4294967295"]),
        (|r| r.prompt_token_ids = vec![1; 513], &["513", "512"]),
        (|r| r.max_new_tokens = 510, &["513", "512"]),
        (|r| r.max_new_tokens = u32::MAX, &["max_new_tokens", "4294967295"]),
        (|r| r.max_new_tokens = 0, &["max_new_tokens is 0", "prompt_logprobs"]),
        (|r| r.resume_token_ids = vec![1; 6], &["resume_token_ids", "6", "5"]),
        (|r| r.resume_token_ids = vec![300], &["resume_token_ids[0]"]),
        (|r| r.min_new_tokens = 6, &["min_new_tokens is 6", "5"]),
        (|r| r.stop_token_ids = vec![256], &["stop_token_ids[0]"]),
        (|r| r.stop_token_ids = vec![1; 129], &["stop_token_ids", "129", "128"]),
        (|r| r.logprobs = Some(21), &["logprobs is 21", "20"]),
        (|r| r.prompt_logprobs = Some(u32::MAX), &["prompt_logprobs", "20"]),
        (|r| r.cache_salt = vec![0; 257], &["cache_salt", "257", "256"]),
        (|r| r.grammar = Some(String::new()), &["grammar"]),
        (|r| r.deadline_unix_ns = Some(0), &["deadline"]),
    ];
    for (change, wanted) in cases {
        let (code, message) = refused(change);
        for wanted in wanted {
            assert!(message.contains(wanted), "{message:?} does not name {wanted:?}");
        }
        let expected = match wanted[0] {
            "grammar" => Code::Unimplemented,
            "deadline" => Code::DeadlineExceeded,
            _ => Code::InvalidArgument,
        };
        assert_eq!(code, expected, "{message}");
    }
}

#[test]
fn the_limits_themselves_are_taken() {
    let request = wire::Generation {
        prompt_token_ids: vec![255; 500],
        max_new_tokens: 12,
        min_new_tokens: 12,
        resume_token_ids: vec![0; 12],
        logprobs: Some(20),
        prompt_logprobs: Some(0),
        cache_salt: vec![1; 256],
        ..wire::Generation::default()
    };
    generation(request, &identity(), Arrival::now()).unwrap();
    let prompt_only = wire::Generation { max_new_tokens: 0, prompt_logprobs: Some(1), ..valid() };
    generation(prompt_only, &identity(), Arrival::now()).unwrap();
}

#[test]
fn sampling_numbers_are_finite_and_in_range() {
    type Set = fn(&mut wire::Sampling, f32);
    let fields: [(&str, Set, &[f32], &[f32]); 6] = [
        ("temperature", |s, v| s.temperature = Some(v), &[0.0, 2.0], &[-0.0, -1.0, 101.0]),
        ("top_p", |s, v| s.top_p = Some(v), &[1e-9, 1.0], &[0.0, -0.1, 1.1]),
        ("min_p", |s, v| s.min_p = Some(v), &[0.0, 1.0], &[-0.1, 1.1]),
        ("presence_penalty", |s, v| s.presence_penalty = Some(v), &[-2.0, 2.0], &[2.1]),
        ("frequency_penalty", |s, v| s.frequency_penalty = Some(v), &[-2.0, 2.0], &[-2.1]),
        ("repetition_penalty", |s, v| s.repetition_penalty = Some(v), &[0.1, 2.0], &[0.0, -1.0]),
    ];
    for (name, set, good, bad) in fields {
        let with = |value| {
            let mut sampling = wire::Sampling::default();
            set(&mut sampling, value);
            sampled(sampling)
        };
        for value in good {
            assert!(with(*value).is_ok(), "{name} {value}");
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].iter().chain(bad) {
            let refusal = with(*value).unwrap_err();
            assert!(refusal.message.starts_with(name), "{name} {value}: {}", refusal.message);
        }
    }
    assert!(sampled(wire::Sampling { top_k: Some(0), ..Default::default() }).is_err());
    let all = sampled(wire::Sampling { top_k: Some(u32::MAX), ..Default::default() }).unwrap();
    assert_eq!(all.sampling.top_k, None);
}

#[test]
fn biases_are_sorted_and_bounded() {
    let bias = |token_id, bias| wire::LogitBias { token_id, bias };
    let with = |logit_bias| sampled(wire::Sampling { logit_bias, ..Default::default() });
    let checked = with(vec![bias(9, 1.0), bias(3, -100.0)]).unwrap();
    assert_eq!(checked.sampling.logit_bias, [(3, -100.0), (9, 1.0)]);
    assert!(with(vec![bias(256, 1.0)]).is_err());
    assert!(with(vec![bias(1, f32::NAN)]).is_err());
    assert!(with(vec![bias(1, 100.5)]).is_err());
    assert!(with(vec![bias(1, 1.0), bias(1, 2.0)]).is_err());
    assert!(with(vec![bias(1, 1.0); 1025]).is_err());
}

#[test]
fn a_deadline_is_moved_to_the_monotonic_clock() {
    let arrival = Arrival::now();
    let in_ns = |ahead: Duration| {
        let at = arrival.wall.duration_since(UNIX_EPOCH).unwrap() + ahead;
        deadline(u64::try_from(at.as_nanos()).unwrap(), arrival)
    };
    let second = Duration::from_secs(1);
    assert_eq!(in_ns(second).unwrap(), Some(arrival.instant + second));
    assert_eq!(in_ns(Duration::from_secs(365 * 24 * 3600)).unwrap(), None);
    assert_eq!(deadline(u64::MAX, arrival).unwrap(), None);
}

proptest! {
    /// Whatever the numbers, the answer is a refusal or a request that keeps
    /// every promise of the domain type.
    #[test]
    fn what_is_taken_keeps_the_domains_promises(
        prompt in proptest::collection::vec(0_u32..300, 0..20),
        resume in proptest::collection::vec(0_u32..300, 0..8),
        max_new_tokens: u32, min_new_tokens: u32,
        small_new in 0_u32..8,
        logprobs: Option<u32>, deadline_unix_ns: Option<u64>,
        temperature: Option<f32>, top_p: Option<f32>, bias: f32,
    ) {
        for max_new_tokens in [max_new_tokens, small_new] {
            let request = wire::Generation {
                prompt_token_ids: prompt.clone(),
                resume_token_ids: resume.clone(),
                max_new_tokens,
                min_new_tokens: min_new_tokens.min(max_new_tokens),
                logprobs,
                deadline_unix_ns,
                sampling: Some(wire::Sampling {
                    temperature, top_p,
                    logit_bias: vec![wire::LogitBias { token_id: 1, bias }],
                    ..wire::Sampling::default()
                }),
                ..wire::Generation::default()
            };
            if let Ok(checked) = generation(request, &identity(), Arrival::now()) {
                prop_assert!(!checked.prompt_token_ids.is_empty());
                let all = checked.prompt_token_ids.iter().chain(&checked.resume_token_ids);
                prop_assert!(all.chain(&checked.stop_token_ids).all(|id| *id < 256));
                prop_assert!(checked.prompt_token_ids.len() as u32 + checked.max_new_tokens <= 512);
                prop_assert!(checked.sampling.temperature.is_finite());
                prop_assert!(checked.sampling.top_p > 0.0 && checked.sampling.top_p <= 1.0);
                prop_assert!(checked.stop_token_ids.is_sorted());
            }
        }
    }
}
