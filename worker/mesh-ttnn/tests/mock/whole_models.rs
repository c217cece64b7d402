//! What holds for whole models on mock devices: steps, memory, operations.

use std::path::Path;

use llama::tiny::{TinyModel, family};
use llama::{
    Checkpoint, DTypePolicy, DevicePlan, Llama3Size, LlamaConfig, LoadError, LoadOptions,
    Optimizations, Workload,
};
use mesh::{Choice, DType, DenseMatrix, Mesh, MeshError, SequenceSlice, StepBatch, WeightCacheUse};
use mesh_ttnn::WeightCacheDir;

use crate::devices;
use crate::model::{BLOCK_SIZE, MAX_MODEL_LEN, Model, Place, Room};

impl Room {
    fn of_blocks(kv_blocks: usize) -> Self {
        Self { kv_blocks, ..Self::OF_MOST_TESTS }
    }
}

impl Model {
    /// The last token of a sequence that has all blocks.
    fn decode_last(&mut self, position: usize) {
        let batch = StepBatch {
            token_ids: vec![1],
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens: 1,
                first_position: position,
                block_table: (0..(position + 1).div_ceil(BLOCK_SIZE) as u32).collect(),
            }],
            logit_rows: vec![0],
            choices: Some(vec![Choice::Greedy]),
        };
        self.runner.forward(&batch, &mut self.out).unwrap();
        assert_eq!(self.out.token_ids.len(), 1);
    }

    /// The logits of the last 64 tokens of a prompt of 128: what evaluation asks.
    pub(crate) fn evaluate(&mut self) {
        let batch = StepBatch {
            token_ids: vec![1; 128],
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens: 128,
                first_position: 0,
                block_table: vec![3, 2, 1, 0],
            }],
            logit_rows: (64..128).collect(),
            choices: None,
        };
        self.runner.forward(&batch, &mut self.out).expect("the step runs");
        assert_eq!(self.out.logits.len(), 64 * self.runner.config().vocab_size);
    }
}

/// Every kind of step; none makes a program the second time, whoever is in it.
pub(crate) fn check(place: Place, size: Llama3Size) {
    let _alone = devices::alone();
    let mut model = Model::load(place, size, &family::config(size));
    let all_kinds = |model: &mut Model, users: usize| {
        let draw = Choice::Sampled { temperature: 0.7, top_k: 20, top_p: 0.9, seed: 5 };
        model.decode(users, None);
        model.decode(users, Some(vec![Choice::Greedy; users]));
        let choices = (0..users).map(|user| if user % 2 == 0 { draw } else { Choice::Greedy });
        model.decode(users, Some(choices.collect()));
    };
    all_kinds(&mut model, 1);
    let decodes = model.num_programs();
    for users in [8, 32, 1] {
        all_kinds(&mut model, users);
        assert_eq!(model.num_programs(), decodes, "{size} decode of {users} users");
    }
    let prompts = |model: &mut Model| {
        model.prefill(0, 1);
        model.prefill(0, 128);
        model.prefill(0, 1000);
        // 5000 tokens in chunks.
        for (first, count) in [(0, 2048), (2048, 2048), (4096, 904)] {
            model.prefill(first, count);
        }
        model.evaluate();
    };
    prompts(&mut model);
    let all = model.num_programs();
    prompts(&mut model);
    assert_eq!(model.num_programs(), all, "{size} prompts");
    println!("{size}: {decodes} programs of decodes, {all} in all");
}

/// The operations of one decode step of a single layer, on the chips, are those
/// of the committed list: one reshard or copy more shows there.
pub(crate) fn check_operations(place: Place, size: Llama3Size) {
    let _alone = devices::alone();
    let config = LlamaConfig { num_hidden_layers: 1, ..family::config(size) };
    let mut model = Model::load(place, size, &config);
    let draw = Choice::Sampled { temperature: 0.7, top_k: 20, top_p: 0.9, seed: 5 };
    let mut found = String::new();
    for (ending, choices) in
        [("logits", None), ("greedy", Some(Choice::Greedy)), ("drawn", Some(draw))]
    {
        model.ops().begin_capture().unwrap();
        model.decode(1, choices.map(|choice| vec![choice]));
        let mut operations = model.ops().end_capture().unwrap();
        operations.retain(|name| name.ends_with("DeviceOperation"));
        found += &format!("# {ending}\n{}\n", operations.join("\n"));
    }
    let name = format!("{size}-{}.txt", place.device).to_lowercase().replace(' ', "-");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operations").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is not the list any more:\n{found}", path.display());
}

/// What a plan says of a model with that many KV blocks.
fn plan(place: Place, size: Llama3Size, kv_blocks: usize) -> DevicePlan {
    let config = family::config(size);
    let policy = DTypePolicy::choose(&config, Optimizations::Performance);
    let workload = Workload {
        max_model_len: MAX_MODEL_LEN,
        kv_tokens: kv_blocks * BLOCK_SIZE,
        kv_block_size: BLOCK_SIZE,
        prefill_chunk: 2048,
    };
    DevicePlan::new(&config, place.device, policy, workload).unwrap()
}

/// Our arithmetic and the package's allocator agree on what a model takes, and
/// ours refuses first.
pub(crate) fn check_memory(place: Place, size: Llama3Size) {
    let _alone = devices::alone();
    let config = family::config(size);
    let resident = |blocks: usize| {
        let plan = plan(place, size, blocks);
        plan.weight_bytes() + plan.cache_bytes()
    };
    let largest = largest_that_fits(place, size);
    let mut model = Model::try_load(place, size, &config, Room::of_blocks(largest)).unwrap();
    let found = model.ops().dram_use().unwrap();
    let taken = (found.num_banks * (found.total_bytes - found.free_bytes)) as u64;
    let (planned, total) = (resident(largest), (found.num_banks * found.total_bytes) as u64);
    println!("{size} on {}: {largest} blocks, planned {planned}, taken {taken}", place.device);
    assert!(planned.abs_diff(taken) < taken / 500, "planned {planned}, taken {taken}");
    // The longest prompt of a step, and a step of every user, have room too.
    model.prefill(0, 2048);
    model.decode(32, None);
    drop(model);

    // The allocator holds out a little longer, and refuses where our sum has
    // reached what there is.
    let blocks_of = |bytes: u64| (bytes / (resident(largest + 1) - resident(largest))) as usize;
    let last = largest + blocks_of(total - planned);
    let slack = last / 100;
    drop(Model::try_load(place, size, &config, Room::of_blocks(last - slack)).unwrap());
    match Model::try_load(place, size, &config, Room::of_blocks(last + slack)) {
        Err(LoadError::Mesh(MeshError::DoesNotFit(message))) => {
            assert!(message.contains("Out of Memory"), "{message}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{size} with {} blocks fits, against our sum", last + slack),
    }
}

/// Most KV blocks that a plan does not refuse.
fn largest_that_fits(place: Place, size: Llama3Size) -> usize {
    let fits = |blocks: usize| plan(place, size, blocks).check(None).is_ok();
    let (mut fitting, mut refused) = (1, 1 << 20);
    assert!(fits(fitting) && !fits(refused));
    while refused - fitting > 1 {
        let middle = (fitting + refused) / 2;
        if fits(middle) { fitting = middle } else { refused = middle }
    }
    fitting
}

/// Weights are prepared once, kept as files, and mapped by the next start, for
/// which the checkpoint is not read.
pub(crate) fn check_weight_cache(place: Place) {
    let _alone = devices::alone();
    let config = LlamaConfig {
        hidden_size: 768,
        intermediate_size: 1024,
        vocab_size: 1024,
        num_hidden_layers: 2,
        ..family::config(Llama3Size::B3)
    };
    let directory = tempfile::tempdir().unwrap();
    TinyModel::new(config, 5).write_hugging_face(directory.path()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let load = LoadOptions {
        policy: DTypePolicy::choose(checkpoint.config(), Optimizations::Performance),
        max_model_len: 1024,
        kv_blocks: 256,
        kv_block_size: BLOCK_SIZE,
    };
    let cache = WeightCacheDir {
        path: directory.path().join(place.device.to_string()).join("performance"),
        checkpoint: "a revision".into(),
        policy: "performance".into(),
    };
    for used in [WeightCacheUse::Written, WeightCacheUse::Hit, WeightCacheUse::Hit] {
        let mesh = Model::mesh(place, Some(cache.clone()));
        let mut model = Model::on(mesh, &checkpoint, &load).unwrap();
        assert_eq!(model.runner.weight_cache(), used);
        model.prefill(0, 128);
        model.decode(8, None);
    }
    let files = std::fs::read_dir(&cache.path).unwrap().map(|file| file.unwrap().file_name());
    let tensors = files.filter(|name| name.to_string_lossy().ends_with(".tensorbin")).count();
    // Two layers of five matrices and two gains; embedding, last gain, LM head.
    assert_eq!(tensors, 2 * 7 + 3);
    check_lost_folder(place);
}

/// Where a file cannot be written any more, weights are packed without one.
fn check_lost_folder(place: Place) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("performance");
    let cache = WeightCacheDir { path, checkpoint: String::new(), policy: String::new() };
    let mut mesh = Model::mesh(place, Some(cache));
    let weight = |name: &str| DenseMatrix::new(name, 512, vec![0.5; 512 * 512]);
    let files = |path: &Path| -> Vec<_> {
        std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path()).collect()
    };
    mesh.load_row_parallel(&weight("first"), DType::Bfp8).unwrap();
    let [partial] = files(directory.path()).try_into().expect("one folder");
    assert_eq!(files(&partial).len(), 1);
    std::fs::remove_dir_all(&partial).unwrap();
    for (name, dtype) in [("second", DType::Bfp8), ("third", DType::Bfp4)] {
        mesh.load_row_parallel(&weight(name), dtype).unwrap();
    }
    assert_eq!(mesh.finish_loading().unwrap(), WeightCacheUse::Unused);
    assert_eq!(files(directory.path()).len(), 0);
}

/// A context of 128k: its last chunks, chunks longer than a product takes at
/// once, and its last token.
pub(crate) fn check_long_context(place: Place, size: Llama3Size) {
    const LEN: usize = 128 * 1024;
    let _alone = devices::alone();
    let room = Room { max_model_len: LEN, kv_blocks: LEN / BLOCK_SIZE };
    let mut model = Model::try_load(place, size, &family::config(size), room).unwrap();
    for _ in 0..2 {
        model.prefill(0, 6000);
        model.prefill(LEN - 8192, 4096);
        model.prefill(LEN - 4096, 4095);
        model.decode_last(LEN - 1);
    }
}
