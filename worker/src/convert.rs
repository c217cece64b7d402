//! Wire types to domain types and back. Only this and `service` name `proto`.

pub mod request;
pub mod step;

use proto::v1 as wire;

use crate::engine::CacheEvents;
use crate::generation::{FinishReason, Load, Logprobs, SequenceTiming, StepTiming};
use crate::identity::Identity;

/// The answer to `Describe`.
#[must_use]
pub fn describe(identity: &Identity) -> wire::DescribeResponse {
    let Identity { model, device, limits, rules, prefix_cache } = identity.clone();
    let mut capabilities =
        vec![wire::Capability::Logprobs.into(), wire::Capability::PromptLogprobs.into()];
    if prefix_cache {
        capabilities.push(wire::Capability::PrefixCache.into());
    }
    wire::DescribeResponse {
        protocol_version: proto::PROTOCOL_VERSION,
        build_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: Some(wire::Model {
            name: model.name,
            architecture: model.architecture,
            weight_fingerprint: model.weight_fingerprint,
            tokenizer_fingerprint: model.tokenizer_fingerprint,
            vocab_size: model.vocab_size,
            eos_token_ids: model.eos_token_ids,
        }),
        device: Some(wire::Device {
            name: device.name,
            simulates: device.simulates.unwrap_or_default(),
            mesh_shape: vec![1, device.num_chips],
            optimizations: device.optimizations,
            weight_dtype: device.weight_dtype,
            kv_dtype: device.kv_dtype,
            logits_dtype: device.logits_dtype,
        }),
        limits: Some(wire::Limits {
            max_model_len: limits.max_model_len,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            num_kv_blocks: limits.num_kv_blocks,
            kv_block_size: limits.kv_block_size,
            max_logprobs: limits.max_logprobs,
        }),
        capabilities,
        step_rules: Some(step_rules(&rules)),
    }
}

fn step_rules(rules: &mesh::StepRules) -> wire::StepRules {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    wire::StepRules {
        mixes_prefill_with_decode: rules.mixes_prefill_with_decode,
        max_prefill_seqs: rules.max_prefill_seqs.map(count),
        decode_rows: rules.decode_rows.map(count),
        prefill_multiple: count(rules.prefill_multiple),
        max_prefill_chunk: rules.max_prefill_chunk.map(count),
        chooses: rules.chooses,
    }
}

/// How full the engine is.
#[must_use]
pub fn load(load: Load) -> wire::Load {
    let Load { running, waiting, kv_blocks_used, kv_blocks_total } = load;
    wire::Load { running, waiting, kv_blocks_used, kv_blocks_total }
}

/// Changes of the prefix cache.
#[must_use]
pub fn cache_events(events: &CacheEvents) -> wire::CacheEvents {
    let bytes =
        |hashes: &[crate::engine::BlockHash]| hashes.iter().map(|hash| hash.0.to_vec()).collect();
    wire::CacheEvents { stored: bytes(&events.stored), evicted: bytes(&events.evicted) }
}

/// The end of a sequence.
#[must_use]
pub fn finish(request_key: u32, reason: &FinishReason, timing: &SequenceTiming) -> wire::Finish {
    let (kind, stop_token_id, error) = match reason {
        FinishReason::Stop(id) => (wire::FinishReason::Stop, Some(*id), None),
        FinishReason::Length => (wire::FinishReason::Length, None, None),
        FinishReason::Cancelled => (wire::FinishReason::Cancelled, None, None),
        FinishReason::Deadline => (wire::FinishReason::Deadline, None, None),
        FinishReason::Numerical => {
            let message = "numerical_error: the logits are not finite".to_owned();
            (wire::FinishReason::Error, None, Some((tonic::Code::Internal, message)))
        }
        FinishReason::Device(message) => {
            (wire::FinishReason::Error, None, Some((tonic::Code::Internal, message.clone())))
        }
        FinishReason::DeviceFailed(message) => {
            (wire::FinishReason::Error, None, Some((tonic::Code::Unavailable, message.clone())))
        }
    };
    let (code, message) = error.unzip();
    wire::Finish {
        request_key,
        reason: kind.into(),
        stop_token_id,
        code: code.map(i32::from),
        message,
        timing: Some(sequence_timing(timing)),
    }
}

/// Log-probabilities of the token at `token_index` of its message.
#[must_use]
pub fn token_logprobs(token_index: u32, logprobs: &Logprobs) -> wire::TokenLogprobs {
    let (top_token_ids, top_logprobs) = logprobs.top.iter().copied().unzip();
    wire::TokenLogprobs { token_index, logprob: logprobs.logprob, top_token_ids, top_logprobs }
}

/// Log-probabilities of prompt tokens.
#[must_use]
pub fn prompt_logprobs(
    request_key: u32,
    first_position: u32,
    tokens: &[Logprobs],
) -> wire::PromptLogprobs {
    let tokens = tokens.iter().map(|token| {
        let (top_token_ids, top_logprobs) = token.top.iter().copied().unzip();
        wire::PromptTokenLogprobs { logprob: token.logprob, top_token_ids, top_logprobs }
    });
    wire::PromptLogprobs { request_key, first_position, tokens: tokens.collect() }
}

fn sequence_timing(timing: &SequenceTiming) -> wire::SequenceTiming {
    wire::SequenceTiming {
        queue_ns: nanoseconds(timing.queue),
        prefill_ns: nanoseconds(timing.prefill),
        decode_ns: nanoseconds(timing.decode),
        prompt_tokens: timing.prompt_tokens,
        cached_tokens: timing.cached_tokens,
        generated_tokens: timing.generated_tokens,
        preemptions: timing.preemptions,
    }
}

fn step_timing(timing: &StepTiming) -> wire::StepTiming {
    wire::StepTiming {
        step_ns: nanoseconds(timing.step),
        forward_ns: nanoseconds(timing.forward),
        prefill_tokens: timing.prefill_tokens,
        decode_tokens: timing.decode_tokens,
    }
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod testing {
    //! The identity that tests describe and check against.

    use crate::identity::{DeviceIdentity, Identity, Limits, ModelIdentity};

    /// A vocabulary of 256, sequences of up to 512 tokens, ends 2 and 250.
    pub(crate) fn identity() -> Identity {
        Identity {
            model: ModelIdentity {
                name: "tiny".into(),
                architecture: "llama".into(),
                weight_fingerprint: "ab".into(),
                tokenizer_fingerprint: "cd".into(),
                vocab_size: 256,
                eos_token_ids: vec![2, 250],
            },
            device: DeviceIdentity {
                name: "CPU".into(),
                simulates: Some("N300".into()),
                num_chips: 2,
                optimizations: "performance".into(),
                weight_dtype: "bfp8".into(),
                kv_dtype: "bf16".into(),
                logits_dtype: "f32".into(),
            },
            limits: Limits {
                max_model_len: 512,
                max_num_seqs: 4,
                max_num_batched_tokens: 64,
                num_kv_blocks: 64,
                kv_block_size: 16,
                max_logprobs: 20,
            },
            rules: mesh::StepRules::FREE,
            prefix_cache: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describe_says_everything_that_is_known() {
        let rules = mesh::StepRules { chooses: true, ..mesh::StepRules::FREE };
        let described = describe(&Identity { rules, ..testing::identity() });
        assert_eq!(described.protocol_version, proto::PROTOCOL_VERSION);
        let device = described.device.unwrap();
        assert_eq!(device.mesh_shape, [1, 2]);
        assert_eq!((device.name.as_str(), device.simulates.as_str()), ("CPU", "N300"));
        assert_eq!(described.limits.unwrap().max_logprobs, 20);
        assert!(described.capabilities.contains(&wire::Capability::PrefixCache.into()));
        let rules = described.step_rules.unwrap();
        assert!(rules.mixes_prefill_with_decode && rules.chooses);
        assert_eq!((rules.prefill_multiple, rules.decode_rows), (1, None));
        let without = Identity { prefix_cache: false, ..testing::identity() };
        let capabilities = describe(&without).capabilities;
        assert!(!capabilities.contains(&wire::Capability::PrefixCache.into()));
        assert_eq!(described.model.unwrap().eos_token_ids, [2, 250]);
    }

    #[test]
    fn every_end_has_its_reason_and_errors_their_code() {
        let of = |reason: FinishReason| finish(7, &reason, &SequenceTiming::default());
        let stop = of(FinishReason::Stop(9));
        assert_eq!((stop.reason(), stop.stop_token_id), (wire::FinishReason::Stop, Some(9)));
        assert_eq!(of(FinishReason::Length).reason(), wire::FinishReason::Length);
        assert_eq!(of(FinishReason::Cancelled).reason(), wire::FinishReason::Cancelled);
        assert_eq!(of(FinishReason::Deadline).reason(), wire::FinishReason::Deadline);
        for reason in [FinishReason::Numerical, FinishReason::Device("burnt".into())] {
            let error = of(reason);
            assert_eq!((error.reason(), error.code), (wire::FinishReason::Error, Some(13)));
            assert!(error.message.is_some_and(|message| !message.is_empty()));
        }
        let lost = of(FinishReason::DeviceFailed("hung".into()));
        assert_eq!((lost.reason(), lost.code), (wire::FinishReason::Error, Some(14)));
    }
}
