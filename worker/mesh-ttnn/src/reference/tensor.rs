//! Tensors of the simulated chips and of the host.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use kernels::PackedMatrix;
use mesh::MeshError;

use super::refusal::Op;
use crate::ops::Result;
use crate::spec::{DataType, Layout, MemoryConfig, Shape, Spread, TILE};

/// All that is known of a tensor but its values; the same on every chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// On one chip, without padding.
    pub shape: Shape,
    /// Axes that the chips see: leading ones of length 1 are dropped.
    pub rank: usize,
    /// What it is stored as.
    pub dtype: DataType,
    /// In which order.
    pub layout: Layout,
    /// Where.
    pub memory: MemoryConfig,
}

impl TensorSpec {
    /// Tiles.
    pub(super) fn tiles(shape: Shape, dtype: DataType, memory: MemoryConfig) -> Self {
        Self { shape, rank: 4, dtype, layout: Layout::Tile, memory }
    }

    /// Row-major, in DRAM.
    pub(super) fn row_major(shape: Shape, dtype: DataType) -> Self {
        Self { shape, rank: 4, dtype, layout: Layout::RowMajor, memory: MemoryConfig::DRAM }
    }

    /// Number of elements.
    pub(super) fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of all outer axes together.
    pub(super) fn num_rows(&self) -> usize {
        self.shape[..3].iter().product()
    }

    /// Columns.
    pub(super) fn width(&self) -> usize {
        self.shape[3]
    }

    /// `[rows, columns]` in memory: of tiles, the last two axes are padded to
    /// whole ones.
    pub(super) fn physical(&self) -> [usize; 2] {
        let outer = self.shape[0] * self.shape[1];
        match self.layout {
            Layout::Tile => {
                [outer * self.shape[2].next_multiple_of(TILE), self.width().next_multiple_of(TILE)]
            }
            Layout::RowMajor => [outer * self.shape[2], self.width()],
        }
    }
}

/// What one chip holds: rounded to its element type, without padding.
pub(super) struct Values {
    data: Data,
    /// As the matrix kernel wants it, made at its first product.
    packed: OnceLock<PackedMatrix>,
}

/// Elements, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    /// Of floating point and block floats.
    Real(Vec<f32>),
    /// Of integers.
    Whole(Vec<i64>),
}

impl Values {
    pub(super) fn new(data: Data) -> Self {
        Self { data, packed: OnceLock::new() }
    }

    /// # Panics
    /// If they are integers: an operation checks its operands' types first.
    pub(super) fn reals(&self) -> &[f32] {
        match &self.data {
            Data::Real(values) => values,
            Data::Whole(_) => panic!("integers where reals were checked for"),
        }
    }

    /// To change in place.
    ///
    /// # Panics
    /// As [`Values::reals`].
    pub(super) fn reals_mut(&mut self) -> &mut [f32] {
        self.packed = OnceLock::new();
        match &mut self.data {
            Data::Real(values) => values,
            Data::Whole(_) => panic!("integers where reals were checked for"),
        }
    }

    /// # Panics
    /// If they are reals: an operation checks its operands' types first.
    pub(super) fn wholes(&self) -> &[i64] {
        match &self.data {
            Data::Whole(values) => values,
            Data::Real(_) => panic!("reals where integers were checked for"),
        }
    }

    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    /// The matrix that is made of it once.
    pub(super) fn packed(&self, pack: impl FnOnce() -> PackedMatrix) -> &PackedMatrix {
        self.packed.get_or_init(pack)
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        Self::new(self.data.clone())
    }
}

/// What every chip holds. Chips with the same values share them, so that what is
/// replicated is computed once.
pub(super) type Chips = Vec<Arc<Values>>;

/// The same on every chip.
pub(super) fn replicated(data: Data, num_chips: usize) -> Chips {
    let values = Arc::new(Values::new(data));
    vec![values; num_chips]
}

/// Memory on the chips. A clone is another handle of the same memory: what is
/// written in place, every clone sees.
#[derive(Clone)]
pub struct Tensor(Arc<Memory>);

struct Memory {
    spec: TensorSpec,
    chips: Mutex<Content>,
}

/// What memory holds, or why nothing can be said of it.
type Content = std::result::Result<Chips, &'static str>;

/// Of memory whose command was recorded.
const NEVER_RUN: &str = "whose command was recorded but never run";
/// Of memory that a trace knows nothing of.
const OVERWRITTEN: &str = "that was allocated after a trace, whose execution may overwrite it";

/// Memory, as long as someone has a handle of it.
pub(super) struct WeakTensor(Weak<Memory>);

impl WeakTensor {
    /// Whether anyone has a handle.
    pub(super) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Loses what it holds.
    pub(super) fn overwrite(&self) {
        if let Some(memory) = self.0.upgrade() {
            *Tensor(memory).lock() = Err(OVERWRITTEN);
        }
    }
}

impl Tensor {
    /// Memory that nothing was written to yet.
    pub(super) fn allocate(spec: TensorSpec) -> Self {
        Self(Arc::new(Memory { spec, chips: Mutex::new(Err(NEVER_RUN)) }))
    }

    /// Shape, element type, layout and place.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.0.spec
    }

    /// What every chip holds now.
    pub(super) fn chips(&self, op: Op) -> Result<Chips> {
        self.lock().clone().map_err(|why| self.lost(op, why))
    }

    pub(super) fn store(&self, chips: Chips) {
        *self.lock() = Ok(chips);
    }

    /// Changes what every chip holds.
    pub(super) fn update(
        &self,
        op: Op,
        mut change: impl FnMut(usize, &mut Values) -> Result<()>,
    ) -> Result<()> {
        let mut chips = self.lock();
        let chips = chips.as_mut().map_err(|why| self.lost(op, why))?;
        chips.iter_mut().enumerate().try_for_each(|(c, chip)| change(c, Arc::make_mut(chip)))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.chips.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, op: Op, why: &str) -> MeshError {
        op.refusal("operands that were computed", format_args!("{:?} {why}", self.0.spec.shape))
    }

    pub(super) fn downgrade(&self) -> WeakTensor {
        WeakTensor(Arc::downgrade(&self.0))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.spec.fmt(f)
    }
}

/// Packed on the host: what each chip will get, rounded already.
#[derive(Clone)]
pub struct HostTensor {
    /// Of one chip; the memory is of no meaning.
    pub(super) spec: TensorSpec,
    /// Over all chips.
    pub(super) shape: Shape,
    pub(super) spread: Spread,
    pub(super) chips: Chips,
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, shape, spread, .. } = self;
        f.debug_struct("HostTensor")
            .field("shape", shape)
            .field("dtype", &spec.dtype)
            .field("layout", &spec.layout)
            .field("spread", spread)
            .finish_non_exhaustive()
    }
}
