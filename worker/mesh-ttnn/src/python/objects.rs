//! Plain data as objects of `ttnn`.

use pyo3::prelude::*;
use pyo3::types::PySet;

use super::interpreter::keywords;
use crate::spec::{
    Buffer, ComputeConfig, DataType, Fidelity, Grid, Layout, MatmulProgram, MemoryConfig,
    NormProgram, SdpaProgram,
};

/// Makes objects of `ttnn` from what `spec` says.
#[derive(Clone, Copy)]
pub(super) struct Objects<'a, 'py> {
    pub(super) ttnn: &'a Bound<'py, PyModule>,
    pub(super) device: &'a Bound<'py, PyAny>,
}

impl<'py> Objects<'_, 'py> {
    fn py(self) -> Python<'py> {
        self.ttnn.py()
    }

    /// `ttnn.<path>`
    fn get(self, path: &str) -> PyResult<Bound<'py, PyAny>> {
        path.split('.').try_fold(self.ttnn.clone().into_any(), |object, name| object.getattr(name))
    }

    pub(super) fn dtype(self, dtype: DataType) -> PyResult<Bound<'py, PyAny>> {
        self.get(match dtype {
            DataType::Float32 => "float32",
            DataType::BFloat16 => "bfloat16",
            DataType::BFloat8B => "bfloat8_b",
            DataType::BFloat4B => "bfloat4_b",
            DataType::UInt32 => "uint32",
            DataType::Int32 => "int32",
            DataType::UInt16 => "uint16",
        })
    }

    pub(super) fn layout(self, layout: Layout) -> PyResult<Bound<'py, PyAny>> {
        self.get(match layout {
            Layout::RowMajor => "ROW_MAJOR_LAYOUT",
            Layout::Tile => "TILE_LAYOUT",
        })
    }

    pub(super) fn memory(self, memory: MemoryConfig) -> PyResult<Bound<'py, PyAny>> {
        match memory {
            MemoryConfig::Interleaved(Buffer::Dram) => self.get("DRAM_MEMORY_CONFIG"),
            MemoryConfig::Interleaved(Buffer::L1) => self.get("L1_MEMORY_CONFIG"),
            MemoryConfig::WidthShardedByOp => self.get("L1_WIDTH_SHARDED_MEMORY_CONFIG"),
            MemoryConfig::HeightShardedByOp => self.get("L1_HEIGHT_SHARDED_MEMORY_CONFIG"),
            MemoryConfig::WidthSharded { grid, shard } => {
                self.sharded("WIDTH_SHARDED", "L1", grid, shard)
            }
            MemoryConfig::HeightSharded { grid, shard } => {
                self.sharded("HEIGHT_SHARDED", "L1", grid, shard)
            }
            MemoryConfig::DramWidthSharded { banks, shard } => {
                let grid = Grid { x: banks, y: 1 };
                self.sharded("WIDTH_SHARDED", "DRAM", grid, shard)
            }
        }
    }

    fn sharded(
        self,
        cut: &str,
        buffer: &str,
        grid: Grid,
        shard: [usize; 2],
    ) -> PyResult<Bound<'py, PyAny>> {
        let corner = |x: usize, y: usize| self.get("CoreCoord")?.call1((x, y));
        // An empty grid has no last core: `ttnn` says what it makes of this one.
        let last = corner(grid.x.saturating_sub(1), grid.y.saturating_sub(1))?;
        let range = self.get("CoreRange")?.call1((corner(0, 0)?, last))?;
        let cores = PySet::new(self.py(), [range])?;
        let cores = self.get("CoreRangeSet")?.call1((cores,))?;
        let row_major = self.get("ShardOrientation.ROW_MAJOR")?;
        let shard = self.get("ShardSpec")?.call1((cores, shard, row_major))?;
        self.get("MemoryConfig")?.call1((
            self.get("TensorMemoryLayout")?.getattr(cut)?,
            self.get("BufferType")?.getattr(buffer)?,
            shard,
        ))
    }

    pub(super) fn compute(self, compute: ComputeConfig) -> PyResult<Bound<'py, PyAny>> {
        let fidelity = match compute.fidelity {
            Fidelity::LoFi => "MathFidelity.LoFi",
            Fidelity::HiFi2 => "MathFidelity.HiFi2",
            Fidelity::HiFi4 => "MathFidelity.HiFi4",
        };
        let options = keywords(
            self.py(),
            [
                ("math_approx_mode", false),
                ("fp32_dest_acc_en", compute.fp32_accumulate),
                ("packer_l1_acc", true),
            ],
        )?;
        options.set_item("math_fidelity", self.get(fidelity)?)?;
        let arch = self.device.call_method0("arch")?;
        self.get("init_device_compute_kernel_config")?.call((arch,), Some(&options))
    }

    fn grid(self, grid: Grid) -> PyResult<Bound<'py, PyAny>> {
        self.get("CoreCoord")?.call1((grid.x, grid.y))
    }

    pub(super) fn matmul(self, program: MatmulProgram) -> PyResult<Bound<'py, PyAny>> {
        match program {
            MatmulProgram::DramSharded { in0_block_w, per_core_n } => {
                let options = keywords(
                    self.py(),
                    [("in0_block_w", in0_block_w), ("per_core_M", 1), ("per_core_N", per_core_n)],
                )?;
                options.set_item("fused_activation", self.py().None())?;
                self.get("MatmulMultiCoreReuseMultiCastDRAMShardedProgramConfig")?
                    .call((), Some(&options))
            }
            MatmulProgram::Multicast1d { grid, in0_block_w, out_subblock_w, per_core_n } => {
                let options = keywords(
                    self.py(),
                    [
                        ("in0_block_w", in0_block_w),
                        ("out_subblock_h", 1),
                        ("out_subblock_w", out_subblock_w),
                        ("per_core_M", 1),
                        ("per_core_N", per_core_n),
                    ],
                )?;
                options.set_item("compute_with_storage_grid_size", self.grid(grid)?)?;
                options.set_item("fuse_batch", true)?;
                options.set_item("fused_activation", self.py().None())?;
                options.set_item("mcast_in0", true)?;
                self.get("MatmulMultiCoreReuseMultiCast1DProgramConfig")?.call((), Some(&options))
            }
            MatmulProgram::Multicast2d {
                grid,
                in0_block_w,
                out_subblock_w,
                per_core_m,
                fuse_batch,
                per_core_n,
            } => {
                let options = keywords(
                    self.py(),
                    [
                        ("in0_block_w", in0_block_w),
                        ("out_subblock_h", 1),
                        ("out_subblock_w", out_subblock_w),
                        ("per_core_M", per_core_m),
                        ("per_core_N", per_core_n),
                    ],
                )?;
                options.set_item("compute_with_storage_grid_size", self.grid(grid)?)?;
                options.set_item("transpose_mcast", false)?;
                options.set_item("fused_activation", self.py().None())?;
                options.set_item("fuse_batch", fuse_batch)?;
                self.get("MatmulMultiCoreReuseMultiCastProgramConfig")?.call((), Some(&options))
            }
        }
    }

    pub(super) fn norm(self, program: NormProgram) -> PyResult<Bound<'py, PyAny>> {
        let options = keywords(
            self.py(),
            [("subblock_w", program.subblock_w), ("block_h", 1), ("block_w", program.block_w)],
        )?;
        options.set_item("compute_with_storage_grid_size", self.grid(program.grid)?)?;
        options.set_item("inplace", false)?;
        self.get("LayerNormShardedMultiCoreProgramConfig")?.call((), Some(&options))
    }

    pub(super) fn sdpa(self, program: SdpaProgram) -> PyResult<Bound<'py, PyAny>> {
        let options = keywords(
            self.py(),
            [("q_chunk_size", program.q_chunk_size), ("k_chunk_size", program.k_chunk_size)],
        )?;
        options.set_item("compute_with_storage_grid_size", self.grid(program.grid)?)?;
        options.set_item("exp_approx_mode", false)?;
        self.get("SDPAProgramConfig")?.call((), Some(&options))
    }

    /// `UnaryOpType.SILU`, as the list of activations that binary operations take.
    pub(super) fn silu(self) -> PyResult<[Bound<'py, PyAny>; 1]> {
        Ok([self.get("UnaryOpType.SILU")?])
    }

    /// How chips are connected: eight are a ring.
    pub(super) fn topology(self) -> PyResult<Bound<'py, PyAny>> {
        let num_chips: usize = self.device.call_method0("get_num_devices")?.extract()?;
        self.get(if num_chips > 2 { "Topology.Ring" } else { "Topology.Linear" })
    }
}
