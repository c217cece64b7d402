//! A few weights of every kind, that count how often they are read.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh::{DType, DenseMatrix, Matrix, Mesh as _, MeshError, WeightCacheUse};

use super::WeightCacheFile;
use crate::CpuMesh;
use crate::weights::{Storage, Weight};

/// A matrix that counts the rows that are read of it.
pub(super) struct Counted {
    matrix: DenseMatrix,
    rows_read: AtomicUsize,
    /// Rows below this can be read.
    readable_rows: usize,
}

impl Counted {
    pub(super) fn new(name: &str, rows: usize, cols: usize) -> Self {
        let mut state =
            name.bytes().fold(17_u32, |state, byte| state * 31 % 9973 + u32::from(byte));
        let values = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        });
        let matrix = DenseMatrix::new(name, cols, values.collect());
        Self { matrix, rows_read: AtomicUsize::new(0), readable_rows: rows }
    }

    pub(super) fn rows_read(&self) -> usize {
        self.rows_read.load(Ordering::Relaxed)
    }
}

impl Matrix for Counted {
    fn name(&self) -> &str {
        self.matrix.name()
    }

    fn rows(&self) -> usize {
        self.matrix.rows()
    }

    fn cols(&self) -> usize {
        self.matrix.cols()
    }

    fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), MeshError> {
        let rows = out.len() / self.cols();
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
        if first_row + rows > self.readable_rows {
            return Err(MeshError::Source { name: self.name().into(), message: "gone".into() });
        }
        self.matrix.read_rows(first_row, out)
    }
}

/// Weights of a model of one layer.
pub(super) struct Model {
    pub(super) embedding: Counted,
    pub(super) gain: Counted,
    pub(super) qkv: [Counted; 3],
    pub(super) down: Counted,
    pub(super) dtype: DType,
    pub(super) num_chips: usize,
    pub(super) num_threads: usize,
    /// The fingerprint of the checkpoint.
    pub(super) checkpoint: Cell<&'static str>,
}

impl Model {
    pub(super) fn new(dtype: DType, num_chips: usize) -> Self {
        Self {
            embedding: Counted::new("embedding", 70, 48),
            gain: Counted::new("gain", 1, 48),
            qkv: [("q", 64), ("k", 32), ("v", 32)].map(|(name, rows)| Counted::new(name, rows, 48)),
            down: Counted::new("down", 48, 96),
            dtype,
            num_chips,
            num_threads: 2,
            checkpoint: Cell::new("one"),
        }
    }

    /// As [`Self::new`], whose last weight ends in the middle.
    pub(super) fn broken() -> Self {
        let mut model = Self::new(DType::Bfp8, 2);
        model.down.readable_rows = 20;
        model
    }

    pub(super) fn file(&self, path: &Path) -> WeightCacheFile {
        WeightCacheFile {
            path: path.to_owned(),
            checkpoint: self.checkpoint.get().to_owned(),
            policy: self.dtype.to_string(),
        }
    }

    pub(super) fn mesh(&self) -> CpuMesh {
        CpuMesh::new(self.num_chips, self.num_threads).unwrap()
    }

    /// Loads everything, with the cache at `path`.
    pub(super) fn load(&self, path: &Path) -> (WeightCacheUse, Vec<Weight>) {
        let mut mesh = self.mesh().with_weight_cache(self.file(path));
        let weights = self.load_on(&mut mesh).unwrap();
        (mesh.finish_loading().unwrap(), weights)
    }

    /// Loads everything, without a cache.
    pub(super) fn pack(&self) -> Vec<Vec<u8>> {
        let mut mesh = self.mesh();
        let weights = self.load_on(&mut mesh).unwrap();
        assert_eq!(mesh.finish_loading().unwrap(), WeightCacheUse::Unused);
        bits(&weights)
    }

    /// Loads everything there is, without saying that it is finished.
    pub(super) fn load_unfinished(&self, path: &Path) -> Result<Vec<Weight>, MeshError> {
        self.load_on(&mut self.mesh().with_weight_cache(self.file(path)))
    }

    fn load_on(&self, mesh: &mut CpuMesh) -> Result<Vec<Weight>, MeshError> {
        let [q, k, v] = &self.qkv;
        Ok(vec![
            mesh.load_embedding(&self.embedding, self.dtype)?.0,
            mesh.load_gain(&self.gain)?.0,
            mesh.load_column_parallel(&[q, k, v], self.dtype)?.0,
            mesh.load_row_parallel(&self.down, self.dtype)?.0,
        ])
    }

    /// Rows read so far of each weight, in order.
    pub(super) fn rows_read(&self) -> [usize; 4] {
        let qkv = self.qkv.iter().map(Counted::rows_read).sum();
        [self.embedding.rows_read(), self.gain.rows_read(), qkv, self.down.rows_read()]
    }
}

/// What weights hold, byte by byte.
pub(super) fn bits(weights: &[Weight]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    for weight in weights {
        match &weight.0 {
            Storage::Gain(gain) => {
                pieces.push(gain.iter().flat_map(|value| value.to_le_bytes()).collect());
            }
            Storage::Shards(shards) => {
                pieces.extend(shards.iter().map(|shard| shard.packed_bytes().to_vec()));
            }
        }
    }
    pieces
}
