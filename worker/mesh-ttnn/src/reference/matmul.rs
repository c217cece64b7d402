//! Matrix products. Sums are chains of f32 fused multiply-adds over ascending K;
//! how a product is cut over cores changes nothing but what is refused.

use std::sync::Arc;

use kernels::{Format, Isa, Matmul, PackedMatrix, Pool, matmul};

use super::commands::{Call, Commands};
use super::placement::DRAM_BANKS;
use super::refusal::Op;
use super::rounding::is_whole;
use super::tensor::{Data, Tensor, TensorSpec, Values};
use crate::ops::Result;
use crate::spec::{DataType, Grid, Layout, LinearConfig, MatmulProgram, MemoryConfig, TILE};

const OP: Op = Op("linear");

pub(super) fn linear(
    commands: &mut Commands,
    pool: &Arc<Pool>,
    x: &Tensor,
    weight: &Tensor,
    config: &LinearConfig,
) -> Result<Tensor> {
    let product = Product::of(x.spec(), weight.spec())?;
    OP.needs(!is_whole(config.dtype), "a result of reals", format_args!("{:?}", config.dtype))?;
    let memory = match config.program {
        MatmulProgram::DramSharded { .. } => product.check_dram_sharded(config)?,
        MatmulProgram::Multicast1d { .. } => product.check_one_row(commands, config)?,
        MatmulProgram::Multicast2d { .. } => product.check_multicast(commands, config)?,
    };
    let mut spec = TensorSpec::tiles(x.spec().shape, config.dtype, memory);
    spec.shape[3] = product.n;
    let pool = Arc::clone(pool);
    let Product { batch, rows, k, n, .. } = product;
    let rows = batch * rows;
    let call = Call { op: OP, inputs: &[x, weight], config };
    let [y] = commands.on_each_chip(&call, [spec], move |inputs| {
        let mut y = vec![0.0; rows * n];
        let weight = inputs[1].packed(|| packed(&pool, inputs[1], [n, k]));
        matmul(
            &pool,
            Isa::detect(),
            rows,
            &mut [Matmul { x: inputs[0].reals(), weight, y: &mut y }],
        );
        Ok([Data::Real(y)])
    })?;
    Ok(y)
}

/// A weight `[k, n]` as the kernel wants it.
fn packed(pool: &Pool, weight: &Values, [n, k]: [usize; 2]) -> PackedMatrix {
    let values = weight.reals();
    let read =
        |first_row: usize, rows: &mut [f32]| -> std::result::Result<(), std::convert::Infallible> {
            for (offset, row) in rows.chunks_exact_mut(k).enumerate() {
                let column = values[first_row + offset..].iter().step_by(n);
                row.iter_mut().zip(column).for_each(|(to, from)| *to = *from);
            }
            Ok(())
        };
    match PackedMatrix::pack(pool, Format::F32, [n, k], &read) {
        Ok(packed) => packed,
        Err(never) => match never {},
    }
}

/// `x [1, b, rows, k] · weight [1, 1, k, n]`, with the places of both.
struct Product {
    /// `b` products.
    batch: usize,
    /// Of each.
    rows: usize,
    k: usize,
    n: usize,
    x: MemoryConfig,
    weight: MemoryConfig,
}

impl Product {
    fn of(x: &TensorSpec, weight: &TensorSpec) -> Result<Self> {
        let floats =
            [DataType::BFloat16, DataType::BFloat8B, DataType::BFloat4B, DataType::Float32];
        for (what, operand) in [("x", x), ("the weight", weight)] {
            OP.needs_layout(what, operand, Layout::Tile)?;
            OP.needs_dtype(what, operand, &floats)?;
        }
        let ([_, batch, rows, _], [_, _, k, n]) = (x.shape, weight.shape);
        OP.needs_shape("the weight", weight, [1, 1, k, n])?;
        OP.needs(
            x.shape == [1, batch, rows, k] && k > 0 && n > 0,
            format_args!("x as wide as the weight {:?} is high", weight.shape),
            format_args!("{:?}", x.shape),
        )?;
        OP.needs(k.is_multiple_of(TILE), "K of whole tiles", k)?;
        Ok(Self { batch, rows, k, n, x: x.memory, weight: weight.memory })
    }

    fn k_tiles(&self) -> usize {
        self.k / TILE
    }

    fn n_tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Refuses an `in0_block_w` that does not cut K evenly.
    fn check_block(&self, in0_block_w: usize) -> Result<()> {
        let tiles = self.k_tiles();
        OP.needs(
            in0_block_w > 0 && tiles.is_multiple_of(in0_block_w),
            format_args!("in0_block_w that divides K ({tiles} tiles)"),
            in0_block_w,
        )
    }

    /// Where the result lies.
    fn check_dram_sharded(&self, config: &LinearConfig) -> Result<MemoryConfig> {
        let MatmulProgram::DramSharded { in0_block_w, per_core_n } = config.program else {
            return Err(OP.refusal("a DRAM-sharded program", "another"));
        };
        let (grid, shard) = self.one_sharded_row()?;
        // The banks' columns, padded so that each has whole tiles.
        let bank = self.n.next_multiple_of(TILE * DRAM_BANKS) / DRAM_BANKS;
        let weight = MemoryConfig::DramWidthSharded { banks: DRAM_BANKS, shard: [self.k, bank] };
        OP.needs(
            self.weight == weight,
            format_args!("the weight in {weight:?}"),
            format_args!("{:?}", self.weight),
        )?;
        self.check_shards(grid, shard, in0_block_w, per_core_n)?;
        Self::one_row_of_results(config, grid, per_core_n)
    }

    /// Where the result lies.
    fn check_one_row(&self, commands: &Commands, config: &LinearConfig) -> Result<MemoryConfig> {
        let MatmulProgram::Multicast1d { grid, in0_block_w, out_subblock_w, per_core_n } =
            config.program
        else {
            return Err(OP.refusal("a 1D multicast program", "another"));
        };
        let (cores, shard) = self.one_sharded_row()?;
        commands.floor.check_grid(OP, grid)?;
        OP.needs(cores == grid, "a grid that x's shards lie on", format_args!("{grid}"))?;
        OP.needs_interleaved("the weight", self.weight)?;
        self.check_shards(grid, shard, in0_block_w, per_core_n)?;
        check_subblock(config, out_subblock_w, per_core_n)?;
        Self::one_row_of_results(config, grid, per_core_n)
    }

    /// Cores and shards of an x of one row of tiles.
    fn one_sharded_row(&self) -> Result<(Grid, [usize; 2])> {
        OP.needs(
            self.batch == 1 && self.rows <= TILE,
            "x of one row of tiles",
            format_args!("{} times {} rows", self.batch, self.rows),
        )?;
        match self.x {
            MemoryConfig::WidthSharded { grid, shard } => Ok((grid, shard)),
            other => Err(OP.refusal("x width-sharded", format_args!("{other:?}"))),
        }
    }

    fn check_shards(
        &self,
        grid: Grid,
        shard: [usize; 2],
        in0_block_w: usize,
        per_core_n: usize,
    ) -> Result<()> {
        self.check_block(in0_block_w)?;
        let (shard_tiles, cores) = (shard[1] / TILE, grid.num_cores());
        OP.needs(
            shard[1] * cores == self.k,
            format_args!("K ({}) cut evenly over x's {cores} cores", self.k),
            format_args!("shards of {} columns", shard[1]),
        )?;
        // The package takes these two wrong, and the kernels would not end well.
        OP.needs(
            shard_tiles.is_multiple_of(in0_block_w),
            format_args!("in0_block_w that divides the {shard_tiles} tiles of x's shard"),
            in0_block_w,
        )?;
        let needed = self.n_tiles().div_ceil(cores);
        OP.needs(
            per_core_n == needed,
            format_args!("per_core_N {needed}: {} tiles over {cores} cores", self.n_tiles()),
            per_core_n,
        )
    }

    fn one_row_of_results(
        config: &LinearConfig,
        grid: Grid,
        per_core_n: usize,
    ) -> Result<MemoryConfig> {
        let result = MemoryConfig::WidthSharded { grid, shard: [TILE, per_core_n * TILE] };
        let asked = config.memory;
        OP.needs(
            asked == MemoryConfig::WidthShardedByOp || asked == result,
            "a result width-sharded as the operation chooses",
            format_args!("{asked:?}"),
        )?;
        Ok(result)
    }

    /// Where the result lies.
    fn check_multicast(&self, commands: &Commands, config: &LinearConfig) -> Result<MemoryConfig> {
        let MatmulProgram::Multicast2d {
            grid,
            in0_block_w,
            out_subblock_w,
            per_core_m,
            fuse_batch,
            per_core_n,
        } = config.program
        else {
            return Err(OP.refusal("a 2D multicast program", "another"));
        };
        commands.floor.check_grid(OP, grid)?;
        OP.needs_interleaved("x", self.x)?;
        OP.needs_interleaved("the result", config.memory)?;
        self.check_block(in0_block_w)?;
        let cover = |what: &str, tiles: usize, per_core: usize, cores: usize| {
            OP.needs(
                per_core * cores >= tiles,
                format_args!("{what} of at least {}", tiles.div_ceil(cores)),
                format_args!("{per_core} for {tiles} tiles on {cores} cores"),
            )
        };
        let row_tiles = self.rows.div_ceil(TILE) * if fuse_batch { self.batch } else { 1 };
        cover("per_core_M", row_tiles, per_core_m, grid.y)?;
        cover("per_core_N", self.n_tiles(), per_core_n, grid.x)?;
        check_subblock(config, out_subblock_w, per_core_n)?;
        Ok(config.memory)
    }
}

fn check_subblock(config: &LinearConfig, out_subblock_w: usize, per_core_n: usize) -> Result<()> {
    OP.needs(
        out_subblock_w > 0 && per_core_n.is_multiple_of(out_subblock_w),
        format_args!("out_subblock_w that divides per_core_N ({per_core_n})"),
        out_subblock_w,
    )?;
    let most = if config.compute.fp32_accumulate { 4 } else { 8 };
    OP.needs(
        out_subblock_w <= most,
        format_args!("out_subblock_w of at most {most}"),
        out_subblock_w,
    )
}
