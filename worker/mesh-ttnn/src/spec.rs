//! What tensors, memories and programs are, as plain data with `ttnn`'s names.
//!
//! Everything here is `Hash + Eq`, so that an implementation makes each of its
//! own objects once.

use std::fmt;

/// Rows and columns of a tile.
pub const TILE: usize = 32;

/// `[1, 1, rows, columns]` in most cases; what each chip holds.
pub type Shape = [usize; 4];

/// Element types of `ttnn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataType {
    /// `ttnn.float32`
    Float32,
    /// `ttnn.bfloat16`
    BFloat16,
    /// `ttnn.bfloat8_b`
    BFloat8B,
    /// `ttnn.bfloat4_b`
    BFloat4B,
    /// `ttnn.uint32`
    UInt32,
    /// `ttnn.int32`
    Int32,
    /// `ttnn.uint16`
    UInt16,
}

/// Order of elements in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `ttnn.ROW_MAJOR_LAYOUT`
    RowMajor,
    /// `ttnn.TILE_LAYOUT`
    Tile,
}

/// Which memory of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// `ttnn.BufferType.DRAM`
    Dram,
    /// `ttnn.BufferType.L1`
    L1,
}

/// A rectangle of cores with its corner at (0, 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Columns.
    pub x: usize,
    /// Rows.
    pub y: usize,
}

/// Where a tensor lies on a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryConfig {
    /// Page by page over all banks.
    Interleaved(Buffer),
    /// Columns cut over L1 of the cores of a grid: `[rows, columns]` of a shard.
    WidthSharded {
        /// Which cores, row by row.
        grid: Grid,
        /// Shape of a shard, whole tiles.
        shard: [usize; 2],
    },
    /// Rows cut over L1 of the cores of a grid.
    HeightSharded {
        /// Which cores, row by row.
        grid: Grid,
        /// Shape of a shard, whole tiles.
        shard: [usize; 2],
    },
    /// Columns cut over the banks of DRAM.
    DramWidthSharded {
        /// Number of banks.
        banks: usize,
        /// Shape of a shard, whole tiles.
        shard: [usize; 2],
    },
    /// Width-sharded in L1 as the operation itself chooses.
    WidthShardedByOp,
    /// Height-sharded in L1 as the operation itself chooses.
    HeightShardedByOp,
}

impl MemoryConfig {
    /// `ttnn.DRAM_MEMORY_CONFIG`
    pub const DRAM: Self = Self::Interleaved(Buffer::Dram);
    /// `ttnn.L1_MEMORY_CONFIG`
    pub const L1: Self = Self::Interleaved(Buffer::L1);
}

/// How many bits of the operands a multiplication sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fidelity {
    /// One pass: enough for bfp4.
    LoFi,
    /// Two passes: enough for bfp8.
    HiFi2,
    /// Four passes: all of bf16.
    HiFi4,
}

/// `ttnn.init_device_compute_kernel_config` with exact maths and accumulation
/// in L1 by the packer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ComputeConfig {
    /// Passes of a multiplication.
    pub fidelity: Fidelity,
    /// Whether sums are kept in f32 until they are packed.
    pub fp32_accumulate: bool,
}

/// How a matrix product is cut over cores. Sizes are in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatmulProgram {
    /// `MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig`: one row of
    /// tiles, the weight read bank by bank.
    DramSharded {
        /// Tiles of K at a time.
        in0_block_w: usize,
        /// Tiles of columns of a core.
        per_core_n: usize,
    },
    /// `MatmulMultiCoreReuseMultiCast1DProgramConfig`: one row of tiles, each
    /// core its columns of an interleaved weight.
    Multicast1d {
        /// Which cores; x's shards lie on them.
        grid: Grid,
        /// Tiles of K at a time.
        in0_block_w: usize,
        /// Tiles of columns that are computed at once; divides `per_core_n`.
        out_subblock_w: usize,
        /// Tiles of columns of a core.
        per_core_n: usize,
    },
    /// `MatmulMultiCoreReuseMultiCastProgramConfig`: rows over the rows of a
    /// grid, columns over its columns.
    Multicast2d {
        /// Which cores.
        grid: Grid,
        /// Tiles of K at a time.
        in0_block_w: usize,
        /// Tiles of columns that are computed at once; divides `per_core_n`.
        out_subblock_w: usize,
        /// Tiles of rows of a core.
        per_core_m: usize,
        /// Whether `[1, b, rows, k]` is one product of `b·rows` rows; else `b` of
        /// them, one after another.
        fuse_batch: bool,
        /// Tiles of columns of a core.
        per_core_n: usize,
    },
}

/// `LayerNormShardedMultiCoreProgramConfig` over one row of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NormProgram {
    /// The grid of the input's shards.
    pub grid: Grid,
    /// Tiles that are computed at once; divides `block_w`.
    pub subblock_w: usize,
    /// Tiles of a shard.
    pub block_w: usize,
}

/// `SDPAProgramConfig` with the exact exponential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SdpaProgram {
    /// Which cores.
    pub grid: Grid,
    /// Queries at a time; 0 lets the operation choose.
    pub q_chunk_size: usize,
    /// Keys at a time; 0 lets the operation choose.
    pub k_chunk_size: usize,
}

/// All that `ttnn.linear` is told beside its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearConfig {
    /// How the product is cut over cores.
    pub program: MatmulProgram,
    /// How precisely it is computed.
    pub compute: ComputeConfig,
    /// Where the result lies.
    pub memory: MemoryConfig,
    /// What it is stored as.
    pub dtype: DataType,
}

/// All that `ttnn.rms_norm` is told beside its operands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    /// Added to the mean of squares.
    pub eps: f32,
    /// For a width-sharded input; its result lies where the input does.
    pub program: Option<NormProgram>,
    /// How precisely it is computed.
    pub compute: ComputeConfig,
    /// Where the result lies.
    pub memory: MemoryConfig,
}

/// All that an attention is told beside its operands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SdpaConfig {
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// How it is cut over cores.
    pub program: SdpaProgram,
    /// How precisely it is computed.
    pub compute: ComputeConfig,
}

/// How the chips of a mesh hold a host tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spread {
    /// Every chip the whole of it.
    Replicated,
    /// Chip `c` the `c`-th equal slice along this axis of four.
    Cut(usize),
}

/// Elements on the host, row-major, `shape` over all chips.
#[derive(Debug, Clone, PartialEq)]
pub enum HostData {
    /// Weights and tables.
    BFloat16(Vec<half::bf16>),
    /// Ids.
    UInt32(Vec<u32>),
    /// Positions and page tables.
    Int32(Vec<i32>),
}

impl HostData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::BFloat16(values) => values.len(),
            Self::UInt32(values) => values.len(),
            Self::Int32(values) => values.len(),
        }
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor on its way to the chips.
#[derive(Debug, Clone, PartialEq)]
pub struct HostMatrix {
    /// Of all chips together.
    pub shape: Shape,
    /// Axes that the chips see, 1 to 4: leading ones of length 1 are dropped.
    /// Positions are `[n]`, page tables `[rows, blocks]`; all else has four.
    pub rank: usize,
    /// `shape` elements.
    pub data: HostData,
    /// What it is stored as.
    pub dtype: DataType,
    /// In which order.
    pub layout: Layout,
    /// What of it each chip gets.
    pub spread: Spread,
}

impl Grid {
    /// Cores in it.
    pub fn num_cores(self) -> usize {
        self.x * self.y
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.x, self.y)
    }
}

impl From<mesh::DType> for DataType {
    fn from(dtype: mesh::DType) -> Self {
        match dtype {
            mesh::DType::F32 => Self::Float32,
            mesh::DType::Bf16 => Self::BFloat16,
            mesh::DType::Bfp8 => Self::BFloat8B,
            mesh::DType::Bfp4 => Self::BFloat4B,
        }
    }
}
