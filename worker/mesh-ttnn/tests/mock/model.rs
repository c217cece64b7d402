//! A model of real size on mock devices, whose weights are memory and nothing
//! else: every operation of a step is checked by the package itself.

use llama::tiny::{family, hollow};
use llama::{
    Checkpoint, DTypePolicy, Device, Llama3Size, LlamaConfig, LoadError, LoadOptions,
    Optimizations, Runner,
};
use mesh::{Choice, SequenceSlice, StepBatch, StepOutput};
use mesh_ttnn::layout::Chip;
use mesh_ttnn::python::{Dispatch, TtnnOps};
use mesh_ttnn::spec::Grid;
use mesh_ttnn::{TtnnMesh, TtnnOptions, WeightCacheDir};

use crate::devices;

pub(crate) const BLOCK_SIZE: usize = 32;
pub(crate) const MAX_MODEL_LEN: usize = 8192;
/// Two sequences of the longest prompt here, and 32 short ones.
const NUM_BLOCKS: usize = 512;

/// How a model is opened.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// Description of the mock devices.
    pub(crate) cluster: &'static str,
    pub(crate) device: Device,
    pub(crate) dispatch: Dispatch,
    /// Rows of the grid that must be there.
    pub(crate) grid_rows: usize,
}

/// How long sequences may be, and how many there may be of them.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    pub(crate) max_model_len: usize,
    pub(crate) kv_blocks: usize,
}

impl Room {
    pub(crate) const OF_MOST_TESTS: Self =
        Self { max_model_len: MAX_MODEL_LEN, kv_blocks: NUM_BLOCKS };
}

/// A model of real size, whose weights are memory and nothing else.
pub(crate) struct Model {
    pub(crate) runner: Runner<TtnnMesh<TtnnOps>>,
    pub(crate) out: StepOutput,
}

impl Model {
    pub(crate) fn load(place: Place, size: Llama3Size, config: &LlamaConfig) -> Self {
        Self::try_load(place, size, config, Room::OF_MOST_TESTS).expect("the model loads")
    }

    pub(crate) fn try_load(
        place: Place,
        size: Llama3Size,
        config: &LlamaConfig,
        room: Room,
    ) -> Result<Self, LoadError> {
        let directory = tempfile::tempdir().expect("a directory");
        hollow::write_hugging_face(config, directory.path()).expect("it is written");
        let checkpoint = Checkpoint::open(directory.path()).expect("it opens");
        let load = LoadOptions {
            policy: DTypePolicy::choose(&family::config(size), Optimizations::Performance),
            max_model_len: room.max_model_len,
            kv_blocks: room.kv_blocks,
            kv_block_size: BLOCK_SIZE,
        };
        Self::on(Self::mesh(place, None), &checkpoint, &load)
    }

    /// Open devices; without weights, or with those that a cache has or gets.
    pub(crate) fn mesh(place: Place, weight_cache: Option<WeightCacheDir>) -> TtnnMesh<TtnnOps> {
        let Place { cluster, device, dispatch, grid_rows } = place;
        let options = devices::options(cluster, device.num_chips(), dispatch);
        let ops = TtnnOps::open(&options).expect("mock devices open");
        let chip = Chip { grid: ops.grid(), dram_banks: ops.num_dram_banks() };
        assert_eq!(chip, Chip { grid: Grid { x: 8, y: grid_rows }, dram_banks: 12 });
        let without_weights = weight_cache.is_none();
        let (device, max_prefill_chunk) = (device.to_string(), MAX_MODEL_LEN);
        TtnnMesh::new(
            ops,
            TtnnOptions { device, chip, max_prefill_chunk, weight_cache, without_weights },
        )
    }

    pub(crate) fn on(
        mesh: TtnnMesh<TtnnOps>,
        checkpoint: &Checkpoint,
        load: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let runner = Runner::load(mesh, checkpoint, load, &mut |_| {})?;
        Ok(Self { runner, out: StepOutput::default() })
    }

    pub(crate) fn ops(&mut self) -> &mut TtnnOps {
        self.runner.mesh_mut().ops_mut()
    }

    pub(crate) fn num_programs(&self) -> usize {
        self.runner.mesh_status().programs
    }

    /// One token each of `num_users`, whose positions are all different.
    pub(crate) fn decode(&mut self, num_users: usize, choices: Option<Vec<Choice>>) {
        let sequences = (0..num_users)
            .map(|user| SequenceSlice {
                first_row: user,
                num_tokens: 1,
                first_position: 7 * user,
                block_table: (0..8).map(|block| (8 * user + block) as u32).collect(),
            })
            .collect();
        let chosen = choices.is_some();
        let batch = StepBatch {
            token_ids: (0..num_users as u32).collect(),
            sequences,
            logit_rows: (0..num_users).collect(),
            choices,
        };
        self.runner.forward(&batch, &mut self.out).expect("the step runs");
        let vocab = self.runner.config().vocab_size;
        let (logits, ids) = if chosen { (0, num_users) } else { (num_users * vocab, 0) };
        assert_eq!((self.out.logits.len(), self.out.token_ids.len()), (logits, ids));
    }

    /// Tokens `first..first + count` of a prompt, and its last token's logits.
    pub(crate) fn prefill(&mut self, first: usize, count: usize) {
        let batch = StepBatch {
            token_ids: vec![1; count],
            sequences: vec![SequenceSlice {
                first_row: 0,
                num_tokens: count,
                first_position: first,
                block_table: (0..(first + count).div_ceil(BLOCK_SIZE) as u32).rev().collect(),
            }],
            logit_rows: vec![count - 1],
            choices: None,
        };
        self.runner.forward(&batch, &mut self.out).expect("the step runs");
        assert_eq!(self.out.logits.len(), self.runner.config().vocab_size);
    }
}
