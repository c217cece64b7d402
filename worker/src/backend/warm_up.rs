//! Running every kind of step once before there is traffic, where kinds are
//! compiled when they are first run.
//!
//! What the steps leave in the KV cache is never read: a sequence reads only
//! positions that it has written.

use mesh::{Choice, MeshError, SequenceSlice, StepBatch, StepOutput, StepRules};

use super::LoadStage;
use crate::engine::Forward;
use crate::identity::Limits;

/// How a random choice begins: its numbers compile nothing of their own.
const DRAWN: Choice = Choice::Sampled { temperature: 1.0, top_k: 32, top_p: 0.9, seed: 1 };

/// One step of every kind; of decodes two, since the first may be recorded and
/// the second is then the record's first run. None where nothing is compiled.
/// `prefill_lengths` are the lengths to which prompts are padded.
pub(super) fn steps(
    rules: &StepRules,
    prefill_lengths: &[usize],
    limits: &Limits,
) -> Vec<StepBatch> {
    if !rules.compiles {
        return Vec::new();
    }
    let mut endings = vec![None];
    if rules.chooses {
        endings.extend([Some(Choice::Greedy), Some(DRAWN)]);
    }
    let max_tokens = limits.max_model_len.min(limits.max_num_batched_tokens) as usize;
    let shortest = prefill_lengths.first().map(|length| (*length).min(max_tokens));
    let mut steps = Vec::new();
    for ending in &endings {
        steps.extend(shortest.map(|tokens| step(tokens, 0, *ending, limits)));
    }
    // Most prompts end with a token that the mesh chooses, if it can.
    let usual = endings.get(1).copied().flatten();
    for length in prefill_lengths.iter().skip(1) {
        steps.push(step((*length).min(max_tokens), 0, usual, limits));
    }
    // A second chunk looks back at the first.
    let chunk = max_tokens.min(rules.max_prefill_chunk.unwrap_or(max_tokens));
    let chunk = chunk - chunk % rules.prefill_multiple;
    if chunk > 0 && 2 * chunk <= limits.max_model_len as usize {
        steps.push(step(chunk, chunk, usual, limits));
    }
    for ending in endings {
        let decode = step(1, 0, ending, limits);
        steps.extend([decode.clone(), decode]);
    }
    steps
}

fn step(
    num_tokens: usize,
    first_position: usize,
    choice: Option<Choice>,
    limits: &Limits,
) -> StepBatch {
    let num_blocks = (first_position + num_tokens).div_ceil(limits.kv_block_size as usize);
    let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
    StepBatch {
        token_ids: vec![0; num_tokens],
        sequences: vec![SequenceSlice {
            first_row: 0,
            num_tokens,
            first_position,
            block_table: (0..num_blocks.min(limits.num_kv_blocks)).collect(),
        }],
        logit_rows: vec![num_tokens - 1],
        choices: choice.map(|choice| vec![choice]),
    }
}

/// Runs `steps`, and tells after each.
///
/// # Errors
/// The device's.
pub(super) fn run<F: Forward>(
    forward: &mut F,
    steps: &[StepBatch],
    progress: &mut dyn FnMut(LoadStage),
) -> Result<(), MeshError> {
    let total = steps.len();
    let mut out = StepOutput::default();
    for (done, step) in steps.iter().enumerate() {
        let programs = forward.mesh_status().programs;
        progress(LoadStage::Compiling { done, total, programs });
        forward.forward(step, &mut out)?;
    }
    let programs = forward.mesh_status().programs;
    progress(LoadStage::Compiling { done: total, total, programs });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::MeshStatus;

    const RULES: StepRules = StepRules {
        mixes_prefill_with_decode: false,
        max_prefill_seqs: Some(1),
        decode_rows: Some(32),
        prefill_multiple: 64,
        max_prefill_chunk: Some(4096),
        chooses: true,
        compiles: true,
    };
    const LENGTHS: [usize; 3] = [128, 256, 512];

    fn limits(max_model_len: u32) -> Limits {
        Limits {
            max_model_len,
            max_num_seqs: 32,
            max_num_batched_tokens: 512,
            num_kv_blocks: max_model_len.div_ceil(32),
            kv_block_size: 32,
            max_logprobs: 0,
        }
    }

    #[derive(Default)]
    struct Counting {
        programs: usize,
    }

    impl Forward for Counting {
        fn forward(&mut self, batch: &StepBatch, out: &mut StepOutput) -> Result<(), MeshError> {
            let [sequence] = batch.sequences.as_slice() else { panic!("one sequence") };
            let end = sequence.first_position + sequence.num_tokens;
            assert!(sequence.block_table.len() * 32 >= end, "the blocks cover the positions");
            assert!(sequence.first_position.is_multiple_of(64));
            self.programs += 10;
            out.clear();
            Ok(())
        }

        fn vocab_size(&self) -> usize {
            1
        }

        fn mesh_status(&self) -> MeshStatus {
            MeshStatus { programs: self.programs, ..MeshStatus::default() }
        }
    }

    #[test]
    fn every_length_ending_and_recorded_decode_is_run_once() {
        let steps = steps(&RULES, &LENGTHS, &limits(1024));
        let kinds: Vec<_> = steps
            .iter()
            .map(|step| (step.num_tokens(), step.sequences[0].first_position))
            .collect();
        let prefills = [(128, 0), (128, 0), (128, 0), (256, 0), (512, 0), (512, 512)];
        assert_eq!(kinds[..6], prefills);
        assert_eq!(kinds[6..], [(1, 0); 6]);
        let choices: Vec<_> = steps[6..].iter().map(|step| step.choices.clone()).collect();
        let greedy = Some(vec![Choice::Greedy]);
        assert_eq!(choices[..4], [None, None, greedy.clone(), greedy]);
        let mut stages = Vec::new();
        let mut device = Counting::default();
        run(&mut device, &steps, &mut |stage| stages.push(stage)).unwrap();
        assert_eq!(stages.len(), 13);
        assert_eq!(stages[3], LoadStage::Compiling { done: 3, total: 12, programs: 30 });
        assert_eq!(stages[12].to_string(), "the model is compiling, step 12 of 12, 120 programs");
    }

    #[test]
    fn a_short_context_is_not_overrun_and_what_compiles_nothing_runs_nothing() {
        let steps = steps(&RULES, &LENGTHS[..2], &limits(160));
        let longest = steps.iter().map(StepBatch::num_tokens).max();
        assert_eq!(longest, Some(160));
        run(&mut Counting::default(), &steps, &mut |_| {}).unwrap();
        assert!(super::steps(&StepRules::FREE, &LENGTHS, &limits(1024)).is_empty());
    }
}
