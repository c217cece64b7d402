//! The engine on the packaged model: a request's tokens and log-probabilities
//! are bit-identical whatever else the engine does.

use std::collections::HashMap;
use std::time::Duration;

use integration_tests::golden::Golden;
use llama::{Checkpoint, DTypePolicy, LoadOptions, Optimizations, Runner};
use mesh::StepRules;
use mesh_cpu::CpuMesh;
use worker::engine::{Client, ClientLimits, Engine, EngineConfig, EngineHandle, EngineOptions};
use worker::generation::{Event, FinishReason, Generation, Sampling, SequenceId};

const BLOCK_SIZE: usize = 16;
const MAX_MODEL_LEN: usize = 512;
const ANSWER_TOKENS: u32 = 24;

/// A token with the bits of its log-probability.
type Answer = Vec<(u32, u32)>;

/// What varies between engines.
#[derive(Clone, Copy)]
struct Setup {
    kv_blocks: usize,
    max_num_batched_tokens: usize,
    prefix_cache: bool,
}

const ROOMY: Setup = Setup { kv_blocks: 512, max_num_batched_tokens: 256, prefix_cache: false };

fn engine(setup: Setup) -> EngineHandle {
    let checkpoint = Checkpoint::open(&integration_tests::packaged_model()).expect("opens");
    let options = LoadOptions {
        policy: DTypePolicy::choose(checkpoint.config(), Optimizations::Performance),
        max_model_len: MAX_MODEL_LEN,
        kv_blocks: setup.kv_blocks,
        kv_block_size: BLOCK_SIZE,
    };
    let mesh = CpuMesh::new(1, 2).expect("fits");
    let runner = Runner::load(mesh, &checkpoint, &options, &mut |_| {}).expect("loads");
    let config = EngineConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: setup.max_num_batched_tokens,
        max_model_len: MAX_MODEL_LEN,
        num_kv_blocks: setup.kv_blocks,
        kv_block_size: BLOCK_SIZE,
        max_logit_rows: 64,
        prefix_cache: setup.prefix_cache,
        rules: StepRules::FREE,
    };
    let limits = ClientLimits {
        channel_capacity: 64,
        outbox_tokens: 4096,
        patience: Duration::from_secs(10),
    };
    let options =
        EngineOptions { config, max_waiting_seqs: 64, client_limits: limits, cache_key: [7; 32] };
    Engine::start(runner, options).expect("starts").0
}

/// Request `index`: prompts of different lengths, greedy and seeded alike.
fn request(golden: &Golden, index: usize) -> Generation {
    let chat = &golden.chats[index % golden.chats.len()];
    let passage = &golden.forced[index % golden.forced.len()].ids;
    let mut prompt = passage[..passage.len() * (index % 4) / 4].to_vec();
    prompt.extend(&chat.prompt);
    let temperature = if index.is_multiple_of(3) { 0.0 } else { 1.1 };
    Generation {
        prompt_token_ids: prompt,
        resume_token_ids: Vec::new(),
        max_new_tokens: ANSWER_TOKENS,
        min_new_tokens: 0,
        stop_token_ids: Vec::new(),
        sampling: Sampling {
            temperature,
            top_p: 0.95,
            seed: index as u64,
            repetition_penalty: 1.1,
            ..Sampling::default()
        },
        logprobs: Some(2),
        prompt_logprobs: None,
        priority: 0,
        deadline: None,
        cache_salt: Vec::new(),
    }
}

/// Reads events until all of `sequences` have ended.
async fn collect(client: &mut Client, sequences: &[SequenceId]) -> HashMap<SequenceId, Answer> {
    let mut answers: HashMap<SequenceId, Answer> = HashMap::new();
    let mut open = sequences.len();
    while open > 0 {
        let step = client.events.recv().await.expect("the engine runs");
        for event in step.events {
            match event {
                Event::Token { sequence, token_id, logprobs } => {
                    let bits = logprobs.expect("asked for").logprob.to_bits();
                    answers.entry(sequence).or_default().push((token_id, bits));
                }
                Event::Finished { sequence, reason, .. } if sequences.contains(&sequence) => {
                    assert_eq!(reason, FinishReason::Length);
                    open -= 1;
                }
                _ => {}
            }
        }
    }
    answers
}

async fn run(handle: &EngineHandle, requests: Vec<Generation>) -> Vec<Answer> {
    let mut client = handle.attach().await.expect("runs");
    let submit = |request| handle.submit(client.id, request, tracing_span()).expect("taken");
    let sequences: Vec<SequenceId> = requests.into_iter().map(submit).collect();
    let mut answers = collect(&mut client, &sequences).await;
    sequences.iter().map(|id| answers.remove(id).expect("answered")).collect()
}

/// These tests look at no trace.
fn tracing_span() -> tracing::Span {
    tracing::Span::none()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Each request by itself, on an engine with room for everything.
fn alone(golden: &Golden, indices: &[usize]) -> Vec<Answer> {
    let handle = engine(ROOMY);
    let one = |&index: &usize| block_on(run(&handle, vec![request(golden, index)])).remove(0);
    indices.iter().map(one).collect()
}

#[test]
fn in_a_batch_of_sixteen_with_others_coming_and_going() {
    let golden = Golden::load();
    let indices: Vec<usize> = (0..16).collect();
    let expected = alone(&golden, &indices);
    let handle = engine(ROOMY);
    let found = block_on(async {
        // Others: admitted before, cancelled in the middle.
        let mut others = handle.attach().await.expect("runs");
        let mut long = request(&golden, 3);
        long.max_new_tokens = 200;
        for seed in 0..6 {
            long.sampling.seed = seed;
            handle.submit(others.id, long.clone(), tracing_span()).expect("taken");
        }
        for _ in 0..3 {
            others.events.recv().await.expect("the engine runs");
        }
        let leaving = async {
            for _ in 0..10 {
                others.events.recv().await.expect("the engine runs");
            }
            drop(others);
        };
        let batch = run(&handle, indices.iter().map(|&index| request(&golden, index)).collect());
        tokio::join!(leaving, batch).1
    });
    assert!(found == expected, "a request's answer depends on its batch");
    // The status follows the last event.
    let mut status = handle.watch_status();
    let empty = status.wait_for(|status| status.load.kv_blocks_used == 0);
    let limit = Duration::from_secs(10);
    let waited = block_on(async { tokio::time::timeout(limit, empty).await.map(|_| ()) });
    assert!(waited.is_ok(), "blocks are still held: {:?}", handle.load());
}

#[test]
fn prefilled_in_chunks_after_pre_emption_and_from_the_cache() {
    let golden = Golden::load();
    let indices = [1, 2, 3, 6, 7, 11];
    let expected = alone(&golden, &indices);
    let requests = || indices.iter().map(|&index| request(&golden, index)).collect::<Vec<_>>();

    let chunked = engine(Setup { max_num_batched_tokens: 32, ..ROOMY });
    assert!(block_on(run(&chunked, requests())) == expected, "chunks change an answer");

    // Just enough for the longest alone: the six of them must take turns.
    let longest = requests().iter().map(|r| r.prompt_token_ids.len()).max().expect("some");
    let needed = (longest + ANSWER_TOKENS as usize).div_ceil(BLOCK_SIZE);
    let crowded = engine(Setup { kv_blocks: needed + 3, ..ROOMY });
    assert!(block_on(run(&crowded, requests())) == expected, "pre-emption changes an answer");
    assert!(crowded.status().totals.preemptions > 0, "nothing was pre-empted");

    let cached = engine(Setup { prefix_cache: true, ..ROOMY });
    for round in ["cold", "warm"] {
        assert!(
            block_on(run(&cached, requests())) == expected,
            "a {round} cache changes an answer"
        );
    }
    assert!(cached.status().totals.cached_tokens > 0, "nothing was cached");
}
