//! Weights from the checkpoint, or from what an earlier start has prepared, to
//! the chips.

use mesh::{DType, Matrix, MeshError};

use crate::layout::{LinearShape, WeightLayout};
use crate::mesh::TtnnMesh;
use crate::ops::Ops;
use crate::spec::{DataType, HostMatrix, Layout, MemoryConfig, Shape, Spread, TILE};
use crate::weight::{Gain, Linear, Piece, Weight, check_cut, gain, row_major, transposed};

/// Axis of input channels, and of output channels, of a weight on the chips.
const K_AXIS: usize = 2;
const N_AXIS: usize = 3;
/// Columns of the LM head that one product computes: more do not fit L1.
const MAX_LM_HEAD: usize = 32_064;

/// A weight as a chip holds it.
#[derive(Debug, Clone, Copy)]
struct Place {
    shape: Shape,
    dtype: DataType,
    layout: Layout,
    memory: MemoryConfig,
}

impl Place {
    /// Rows of bf16 in DRAM.
    fn row_major(shape: Shape) -> Self {
        let (dtype, layout) = (DataType::BFloat16, Layout::RowMajor);
        Self { shape, dtype, layout, memory: MemoryConfig::DRAM }
    }
}

/// How a column-parallel weight lies, and what its results are stored as.
#[derive(Debug, Clone, Copy)]
struct Columns {
    lies: WeightLayout,
    /// Results of one row of tiles.
    decode: DataType,
    /// Results of a prompt.
    prefill: DataType,
}

impl Columns {
    const BF16: Self =
        Self { lies: WeightLayout::Banks, decode: DataType::BFloat16, prefill: DataType::BFloat16 };
}

impl<O: Ops> TtnnMesh<O> {
    /// Parts side by side on each chip, in one matrix.
    pub(crate) fn fused(
        &mut self,
        parts: &[&dyn Matrix],
        dtype: DType,
    ) -> Result<Weight<O::Tensor>, MeshError> {
        let pieces = self.column_pieces(parts)?;
        let name = parts.iter().map(|part| part.name()).collect::<Vec<_>>().join("+");
        // On its own it is an output projection: its input is gathered, and few
        // columns are left to each chip.
        let alone = parts.len() == 1;
        let lies = if alone { WeightLayout::Interleaved } else { WeightLayout::Banks };
        let columns = Columns { lies, ..Columns::BF16 };
        Ok(Weight::Linear(vec![self.columns(&name, &pieces, dtype, columns)?]))
    }

    /// Two matrices with the same input: their results meet value by value.
    pub(crate) fn gate_and_up(
        &mut self,
        gate: &dyn Matrix,
        up: &dyn Matrix,
        dtype: DType,
    ) -> Result<Weight<O::Tensor>, MeshError> {
        let blocks = if dtype == DType::Bf16 { DataType::BFloat16 } else { DataType::BFloat8B };
        self.activation = blocks;
        let columns = Columns { prefill: blocks, ..Columns::BF16 };
        let mut matrices = Vec::with_capacity(2);
        for part in [gate, up] {
            let pieces = self.column_pieces(&[part])?;
            matrices.push(self.columns(part.name(), &pieces, dtype, columns)?);
        }
        Ok(Weight::Linear(matrices))
    }

    /// The vocabulary in slices, so that L1 holds a product's buffers.
    pub(crate) fn lm_head(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<Weight<O::Tensor>, MeshError> {
        let num_chips = self.chips.count();
        let on_chip = check_cut(matrix.name(), "output channels", matrix.rows(), num_chips)?;
        self.vocab_on_chip = on_chip;
        let logits = if dtype == DType::Bf16 { DType::Bf16 } else { DType::Bfp8 };
        self.set_logits_dtype(logits);
        let columns = Columns { decode: logits.into(), prefill: logits.into(), ..Columns::BF16 };
        let num_slices = (1..=on_chip / TILE)
            .find(|&n| on_chip.is_multiple_of(n * TILE) && on_chip / n <= MAX_LM_HEAD)
            .expect("one tile is a slice");
        let width = on_chip / num_slices;
        let mut slices = Vec::with_capacity(num_slices);
        for slice in 0..num_slices {
            let pieces: Vec<_> = (0..num_chips)
                .map(|chip| {
                    let start = chip * on_chip + slice * width;
                    Piece { matrix, rows: start..start + width }
                })
                .collect();
            let name = format!("lm_head.{}.slice{slice}of{num_slices}", matrix.name());
            slices.push(self.columns(&name, &pieces, dtype, columns)?);
        }
        Ok(Weight::Linear(slices))
    }

    /// Each chip its own input channels.
    pub(crate) fn row_parallel(
        &mut self,
        matrix: &dyn Matrix,
        dtype: DType,
    ) -> Result<Weight<O::Tensor>, MeshError> {
        let k = check_cut(matrix.name(), "input channels", matrix.cols(), self.chips.count())?;
        check_cut(matrix.name(), "output channels", matrix.rows(), 1)?;
        let pieces = [Piece { matrix, rows: 0..matrix.rows() }];
        let shape = LinearShape {
            k,
            n: matrix.rows(),
            weight: stored(matrix.name(), dtype)?,
            result: DataType::BFloat16,
            lies: WeightLayout::Banks,
        };
        let make = || transposed(&pieces, dtype, Spread::Cut(K_AXIS));
        let tensor = self.place(&key(matrix.name(), dtype), self.in_tiles(shape), make)?;
        Ok(Weight::Linear(vec![Linear { tensor, shape, prefill_result: DataType::BFloat16 }]))
    }

    /// Each chip its own channels of every token's row.
    pub(crate) fn embedding(
        &mut self,
        table: &dyn Matrix,
        dtype: DType,
    ) -> Result<Weight<O::Tensor>, MeshError> {
        check_cut(table.name(), "channels", table.cols(), self.chips.count())?;
        stored(table.name(), dtype)?;
        let name = format!("embedding.{}", table.name());
        let make = || row_major(table, Spread::Cut(N_AXIS));
        let shape = [1, 1, table.rows(), table.cols() / self.chips.count()];
        self.place(&name, Place::row_major(shape), make).map(Weight::Embedding)
    }

    /// A norm's gain, whole on every chip, and cut where norms are.
    pub(crate) fn gain(&mut self, matrix: &dyn Matrix) -> Result<Weight<O::Tensor>, MeshError> {
        let (name, width, num_chips) = (matrix.name(), matrix.cols(), self.chips.count());
        if matrix.rows() != 1 {
            let rows = matrix.rows();
            return Err(MeshError::DoesNotFit(format!("{name} has {rows} rows, a gain has one")));
        }
        check_cut(name, "channels", width, num_chips)?;
        let tiles = width / TILE;
        let whole = Place::row_major([1, 1, tiles, TILE]);
        let make = || gain(matrix, Spread::Replicated);
        let whole = self.place(&format!("gain.{name}"), whole, make)?;
        let mut cut = None;
        if self.chips.chip.norm_is_distributed(width, num_chips) {
            let part = Place::row_major([1, 1, tiles / num_chips, TILE]);
            let make = || gain(matrix, Spread::Cut(K_AXIS));
            cut = Some(self.place(&format!("gain.{name}_distributed"), part, make)?);
        }
        Ok(Weight::Gain(Gain { whole, cut, width }))
    }

    /// Each chip its slice of every part, in order.
    fn column_pieces<'a>(&self, parts: &[&'a dyn Matrix]) -> Result<Vec<Piece<'a>>, MeshError> {
        let num_chips = self.chips.count();
        let mut shares = Vec::with_capacity(parts.len());
        for part in parts {
            shares.push(check_cut(part.name(), "output channels", part.rows(), num_chips)?);
            check_cut(part.name(), "input channels", part.cols(), 1)?;
        }
        let of_chip = |chip: usize| {
            let shares = parts.iter().zip(&shares);
            shares.map(move |(&matrix, &share)| Piece {
                matrix,
                rows: chip * share..(chip + 1) * share,
            })
        };
        Ok((0..num_chips).flat_map(of_chip).collect())
    }

    fn columns(
        &mut self,
        name: &str,
        pieces: &[Piece<'_>],
        dtype: DType,
        columns: Columns,
    ) -> Result<Linear<O::Tensor>, MeshError> {
        let n: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        let shape = LinearShape {
            k: pieces[0].matrix.cols(),
            n: n / self.chips.count(),
            weight: stored(name, dtype)?,
            result: columns.decode,
            lies: columns.lies,
        };
        let make = || transposed(pieces, dtype, Spread::Cut(N_AXIS));
        let tensor = self.place(&key(name, dtype), self.in_tiles(shape), make)?;
        Ok(Linear { tensor, shape, prefill_result: columns.prefill })
    }

    /// A matrix in tiles.
    fn in_tiles(&self, shape: LinearShape) -> Place {
        Place {
            shape: [1, 1, shape.k, shape.n],
            dtype: shape.weight,
            layout: Layout::Tile,
            memory: self.chips.chip.weight(shape),
        }
    }

    /// Puts a weight where it belongs: from the cache, or from what `make` gives.
    fn place(
        &mut self,
        name: &str,
        place: Place,
        make: impl FnOnce() -> Result<HostMatrix, MeshError>,
    ) -> Result<O::Tensor, MeshError> {
        let ops = &mut self.chips.ops;
        if self.without_weights {
            return ops.empty(place.shape, place.dtype, place.layout, &place.memory);
        }
        let packed = self.cache.load(ops, name, make)?;
        ops.to_device(&packed, &place.memory)
    }
}

fn key(name: &str, dtype: DType) -> String {
    format!("{name}.{dtype}")
}

/// The format on the chips.
fn stored(name: &str, dtype: DType) -> Result<DataType, MeshError> {
    if dtype == DType::F32 {
        return Err(MeshError::DoesNotFit(format!(
            "{name} is to be f32, a card takes bf16, bfp8 and bfp4: f32 is for the CPU mesh"
        )));
    }
    Ok(dtype.into())
}
