//! The block over a batch of one size: its products, and the order in which kernels run.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, result};

use super::fused;
use super::gpu::{Address, Gpu, Grid, On, Source, address, failed, launch};
use super::layout::{Buffers, ColumnSums, Plan, parts};
use super::middle::Middle;
use super::product::{Epilogue, Matrix, Operands, Product, Shape, Type};
use super::weights::{Arena, Weights, suffix};
use crate::error::{Error, Result};
use crate::loss::{Loss, Slope};
use crate::shape::{BlockShape, TensorShape};

/// Parts of the means up to which the pooled linear adds them up by itself.
const FEW_PARTS: usize = 4;
/// Bytes of a batch whose columns are added up before anything else starts. Smaller ones are added up beside it in no time,
/// those of larger ones don't stay in the cache for what follows.
const LARGE_BATCH: std::ops::RangeInclusive<usize> = (32 << 20)..=(48 << 20);
/// Rows or columns of a map; the kernels multiply two of them in 32 bits.
const LONGEST_EDGE: usize = 32768;
/// Values of a block's weights; their indices are 32 bits in the optimiser.
const MOST_VALUES: usize = 1 << 31;

/// Where a step finds its batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Given {
    pub(super) x: Address,
    pub(super) target: Address,
    /// f32 [B, C]; 0 where there are none.
    pub(super) gates: Address,
}

/// A block's forward pass, and its way back where it is trained, for batches of one size.
#[derive(Debug)]
pub(super) struct Pass {
    gpu: Arc<Gpu>,
    pub(super) shape: BlockShape,
    pub(super) size: [usize; 3],
    pub(super) kind: Type,
    memory: CudaSlice<u8>,
    /// Bytes of the buffers.
    pub(super) bytes: usize,
    /// Those of one gradient of the products' weights.
    pub(super) gradient_bytes: usize,
    at: Buffers,
    sums: ColumnSums,
    up: Product,
    out: Product,
    middle: Middle,
    back: Option<Back>,
}

/// What only training needs.
#[derive(Debug)]
struct Back {
    features: Product,
    out: Product,
    out_parts: usize,
    up: Product,
    up_parts: usize,
    input: Product,
}

impl Pass {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        shape: &BlockShape,
        size: [usize; 3],
        kind: Type,
        training: bool,
    ) -> Result<Self> {
        let [batch, height, width] = size;
        fused::maps(shape, size)?;
        if batch == 0 {
            return Err(Error::EmptyBatch);
        }
        let area = height * width;
        let values: usize = shape.tensors().iter().map(TensorShape::len).sum();
        if height > LONGEST_EDGE || width > LONGEST_EDGE || values > MOST_VALUES {
            return Err(Error::TooLarge(size));
        }
        let positions = batch.checked_mul(area).filter(|&n| n.checked_mul(shape.channels()).is_some_and(fits_kernels));
        let Some(positions) = positions else { return Err(Error::TooLarge(size)) };
        let (c, d, f) = (shape.channels(), shape.inner(), shape.features());
        let e = kind.bytes();
        let sums = ColumnSums::new(c, size, kind);
        let (mut middle, middle_bytes) = Middle::new(gpu, shape, size, kind, training)?;
        let middle_parts = middle.sum_parts();
        let up_parts = parts(positions, c * d);
        let out_parts = parts(positions, f * c);

        let mut plan = Plan::default();
        let mut at = Buffers {
            hidden: plan.take(d * positions * e),
            features: plan.take(f * positions * e),
            input_parts: plan.take(sums.parts() * batch * c * 4),
            means: plan.take(batch * c * 4),
            shared: plan.take(batch * c * e),
            ..Buffers::default()
        };
        if training {
            at.feature_gradient = plan.take(f * positions * e);
            at.residual = plan.take(positions * c * e);
            at.residual_parts = plan.take(sums.parts() * batch * c * 4);
            at.squares = plan.take(sums.count() * 8);
            at.residual_sums = plan.take(batch * c * 4);
            at.out_parts = plan.take(out_parts * c * f * 4);
            at.up_parts = plan.take(up_parts * c * d * 4);
            let taps = shape.kernel_size() * shape.kernel_size() * shape.scales().len();
            at.taps_parts = plan.take(middle_parts * taps * d * 4);
            at.bias_parts = plan.take(middle_parts * d * 4);
        }
        let middle_at = plan.take(middle_bytes);
        let bytes = plan.0;
        let memory = gpu.alloc(bytes)?;
        let base = address(&memory, &gpu.stream);
        at.shift(base);
        middle.place(base + middle_at);

        let row =
            |rows, columns, leading, stride, transposed| Matrix { rows, columns, leading, stride, kind, transposed };
        let up = Shape {
            a: row(c, positions, c, 0, true),
            b: row(c, d, c, 0, false),
            d: row(positions, d, positions, 0, false),
            batch: 1,
            epilogue: Epilogue::None,
        };
        let out = Shape {
            a: row(f, c, f, 0, true),
            b: row(area, f, positions, area, true),
            d: row(c, area, c, area * c, false),
            batch,
            epilogue: Epilogue::Bias,
        };
        let back = if training {
            let sum = |rows, columns| Matrix {
                rows,
                columns,
                leading: rows,
                stride: rows * columns,
                kind: Type::F32,
                transposed: false,
            };
            let features = Shape {
                a: row(c, positions, c, 0, true),
                b: row(f, c, f, 0, true),
                d: row(positions, f, positions, 0, false),
                batch: 1,
                epilogue: Epilogue::None,
            };
            let part = positions / out_parts;
            let out = Shape {
                a: row(part, f, positions, part, true),
                b: row(c, part, c, part * c, true),
                d: sum(f, c),
                batch: out_parts,
                epilogue: Epilogue::None,
            };
            let part = positions / up_parts;
            let up = Shape {
                a: row(c, part, c, part * c, false),
                b: row(part, d, positions, part, false),
                d: sum(c, d),
                batch: up_parts,
                epilogue: Epilogue::None,
            };
            let input = Shape {
                a: row(c, d, c, 0, false),
                b: row(area, d, positions, area, true),
                d: row(c, area, c, area * c, false),
                batch,
                epilogue: Epilogue::Bias,
            };
            Some(Back {
                features: Product::new(gpu, features)?,
                out: Product::new(gpu, out)?,
                out_parts,
                up: Product::new(gpu, up)?,
                up_parts,
                input: Product::new(gpu, input)?,
            })
        } else {
            None
        };
        Ok(Self {
            middle,
            gpu: gpu.clone(),
            shape: shape.clone(),
            size,
            kind,
            memory,
            bytes,
            gradient_bytes: if training { c * (d + f) * 4 } else { 0 },
            at,
            sums,
            up: Product::new(gpu, up)?,
            out: Product::new(gpu, out)?,
            back,
        })
    }

    /// Fills all buffers with bytes that read as NaN, so that what is not written shows.
    pub(super) fn poison(&mut self) -> Result<()> {
        let at = address(&self.memory, &self.gpu.stream);
        // SAFETY: the buffer has that many bytes.
        unsafe { result::memset_d8_async(at, 0xff, self.bytes, self.gpu.stream.cu_stream()) }
            .map_err(failed("clearing memory"))
    }

    fn positions(&self) -> usize {
        self.size.iter().product()
    }

    /// y [B, H, W, C] of x.
    ///
    /// # Safety
    /// `x` and `y` must be addresses of that many values of the pass' type.
    pub(super) unsafe fn forward(&mut self, weights: &Weights, x: Address, y: Address) -> Result<()> {
        // SAFETY: the caller's promise; without a factor y is not read.
        unsafe { self.output(weights, x, y, y, 0.0) }
    }

    /// The residual of x's output against the target, its sums, and its mean square in `losses[slot]`, which moves on. With
    /// gates the mean square is that of gate · residual, and the residual and its sums become gate times half the loss' slope there.
    ///
    /// # Safety
    /// `x` and `target` must be addresses of B·H·W·C values of the pass' type, `gates` 0 or that of B·C f32, and the pass one
    /// for training.
    pub(super) unsafe fn residual(
        &mut self,
        weights: &Weights,
        Given { x, target, gates }: Given,
        loss: Loss,
        losses: Address,
        slot: Address,
    ) -> Result<()> {
        let residual = self.at.residual;
        let bend = (gates != 0 || loss != Loss::Squared).then_some((gates, loss.slope()));
        // SAFETY: the caller's promise.
        unsafe {
            self.output(weights, x, residual, target, -1.0)?;
            if bend.is_none() {
                self.gpu.fork()?;
                self.column_sums(On::Side, residual, None, self.at.residual_parts, self.at.squares)?;
            } else {
                // What comes next reads the residual that this writes.
                self.column_sums(On::Main, residual, bend, self.at.residual_parts, self.at.squares)?;
                self.gpu.fork()?;
            }
            let share = 1.0 / (self.positions() * self.shape.channels()) as f64;
            let (parts, sums, squares) = (self.at.residual_parts, self.at.residual_sums, self.at.squares);
            self.reduce(parts, 1.0, sums, squares, share, losses, slot)
        }
    }

    /// Takes y's gradient [B, H, W, C] as what [`Self::backward`] goes back from, after [`Self::forward`].
    ///
    /// # Safety
    /// `gradient` must be the address of B·H·W·C values of the pass' type, and the pass one for training.
    pub(super) unsafe fn take_gradient(&mut self, gradient: Address) -> Result<()> {
        let at = self.at;
        let bytes = self.positions() * self.shape.channels() * self.kind.bytes();
        let what = failed("copying a gradient");
        self.gpu.context.bind_to_thread().map_err(&what)?;
        // SAFETY: the caller's promise; the pass' buffer has that size.
        unsafe {
            result::memcpy_dtod_async(at.residual, gradient, bytes, self.gpu.stream.cu_stream()).map_err(&what)?;
            self.gpu.fork()?;
            self.column_sums(On::Side, at.residual, None, at.residual_parts, 0)?;
            self.reduce(at.residual_parts, 1.0, at.residual_sums, 0, 0.0, 0, 0)
        }
    }

    unsafe fn output(&mut self, weights: &Weights, x: Address, y: Address, target: Address, beta: f32) -> Result<()> {
        let gpu = self.gpu.clone();
        let at = self.at;
        let [up_bias, ..] = weights.biases();
        // SAFETY: the buffers have the sizes that the plan gave them, and the caller's have theirs.
        unsafe {
            let large = LARGE_BATCH.contains(&(self.positions() * self.shape.channels() * self.kind.bytes()));
            if large {
                self.column_sums(On::Main, x, None, at.input_parts, 0)?;
            }
            gpu.fork()?;
            if !large {
                self.column_sums(On::Side, x, None, at.input_parts, 0)?;
            }
            self.shared(weights)?;
            let operands =
                Operands { a: x, b: weights.prepared.up, c: at.hidden, d: at.hidden, bias: 0, alpha: 1.0, beta: 0.0 };
            self.up.run(&gpu, On::Main, operands)?;
            self.middle.forward(&gpu, at.hidden, up_bias, weights.prepared.taps(), at.features)?;
            gpu.join()?;
            let bias = at.shared;
            let operands =
                Operands { a: weights.prepared.out, b: at.features, c: target, d: y, bias, alpha: 1.0, beta };
            self.out.run(&gpu, On::Main, operands)
        }
    }

    /// x's means from their parts, and what all positions of an image share, on the side stream.
    unsafe fn shared(&self, weights: &Weights) -> Result<()> {
        let (gpu, at) = (&self.gpu, &self.at);
        let [_, out_bias, pool_bias] = weights.biases();
        let [batch, height, width] = self.size;
        let channels = self.shape.channels();
        let share = 1.0 / (height * width) as f32;
        let weight = weights.prepared.pool;
        let (parts, images, width) = (self.sums.parts() as i32, batch as i32, channels as i32);
        let grid = |x: usize, y: usize| Grid { blocks: (x as u32, y as u32, 1), threads: 256, shared: 0 };
        // SAFETY: the buffers have the sizes that the plan gave them, and the caller's have theirs.
        unsafe {
            let few = self.sums.parts() <= FEW_PARTS;
            let on_tensor_cores = self.kind == Type::Bf16 && channels.is_multiple_of(32);
            if !(few && on_tensor_cores) {
                self.reduce(at.input_parts, share, at.means, 0, 0.0, 0, 0)?;
            }
            if on_tensor_cores {
                let none: Address = 0;
                let (from, parts, factor, to) =
                    if few { (at.input_parts, parts, share, at.means) } else { (at.means, 1, 1.0, none) };
                let function = gpu.function(Source::Step, "pooled_linear_of_parts")?;
                return launch!(
                    gpu,
                    On::Side,
                    function,
                    grid(channels / 16, batch.div_ceil(16)),
                    [from, parts, factor, to, weight, pool_bias, out_bias, at.shared, images, width]
                );
            }
            let function = gpu.function(Source::Step, &format!("pooled_linear_{}", suffix(self.kind)))?;
            let grid = grid(channels.div_ceil(8), batch);
            launch!(gpu, On::Side, function, grid, [at.means, weight, pool_bias, out_bias, at.shared, width])
        }
    }

    /// The parts of all gradients, from the residual. Ends with the side stream joined.
    ///
    /// # Safety
    /// [`Self::residual`], or [`Self::forward`] and [`Self::take_gradient`], must have run last, for the same `x`.
    pub(super) unsafe fn backward(&mut self, weights: &Weights, x: Address) -> Result<()> {
        let gpu = self.gpu.clone();
        let at = self.at;
        let [up_bias, ..] = weights.biases();
        let Some(back) = &mut self.back else { return Err(Error::OtherShape("pass without training")) };
        let operands = |a, b, d| Operands { a, b, c: d, d, bias: 0, alpha: 1.0, beta: 0.0 };
        // SAFETY: the buffers have the sizes that the plan gave them, and the caller's have theirs.
        unsafe {
            back.out.run(&gpu, On::Side, operands(at.features, at.residual, at.out_parts))?;
            let (gradient, taps) = (at.feature_gradient, weights.prepared.taps());
            back.features.run(&gpu, On::Main, operands(at.residual, weights.prepared.out, gradient))?;
            let parts = (at.taps_parts, at.bias_parts);
            self.middle.backward(&gpu, at.hidden, up_bias, taps, gradient, at.hidden, parts)?;
            back.up.run(&gpu, On::Main, operands(x, at.hidden, at.up_parts))?;
        }
        gpu.join()
    }

    /// x's gradient [B, H, W, C] times `scale`, after [`Self::backward`].
    ///
    /// # Safety
    /// `target` must be the address of B·H·W·C values of the pass' type.
    pub(super) unsafe fn input_gradient(&mut self, weights: &Weights, scale: f32, target: Address) -> Result<()> {
        let gpu = self.gpu.clone();
        let at = self.at;
        let [batch, height, width] = self.size;
        let channels = self.shape.channels();
        let Some(back) = &mut self.back else { return Err(Error::OtherShape("pass without training")) };
        let function = gpu.function(Source::Step, &format!("pooled_backward_{}", suffix(self.kind)))?;
        let grid = Grid { blocks: (channels.div_ceil(256) as u32, batch as u32, 1), threads: 256, shared: 0 };
        let factor = scale / (height * width) as f32;
        let (pool, batch, channels) = (weights.prepared.pool, batch as i32, channels as i32);
        // SAFETY: as in `backward`.
        unsafe {
            launch!(gpu, On::Main, function, grid, [at.residual_sums, pool, factor, at.shared, batch, channels])?;
            let operands = Operands {
                a: weights.prepared.up,
                b: at.hidden,
                c: target,
                d: target,
                bias: at.shared,
                alpha: scale,
                beta: 0.0,
            };
            back.input.run(&gpu, On::Main, operands)
        }
    }

    /// The arena with the parts that [`Self::backward`] leaves.
    pub(super) fn arena(&self, weights: &Weights) -> Arena {
        let (up_count, out_count) = self.back.as_ref().map_or((0, 0), |back| (back.up_parts, back.out_parts));
        Arena {
            batch: self.size[0] as i32,
            up_parts: self.at.up_parts,
            middle_bias_parts: self.at.bias_parts,
            middle_taps_parts: self.at.taps_parts,
            out_parts: self.at.out_parts,
            up_count: up_count as i32,
            middle_count: self.middle.sum_parts() as i32,
            out_count: out_count as i32,
            output_sums: self.at.residual_sums,
            means: self.at.means,
            ..weights.arena
        }
    }

    /// Sums of x's columns, which `bend`, gates and a slope, changes first.
    unsafe fn column_sums(
        &self,
        on: On,
        x: Address,
        bend: Option<(Address, Slope)>,
        parts: Address,
        squares: Address,
    ) -> Result<()> {
        let ending = if self.sums.wide { "" } else { "_single" };
        let name = if bend.is_none() { "column_sums" } else { "bent_sums" };
        let function = self.gpu.function(Source::Step, &format!("{name}_{}{ending}", suffix(self.kind)))?;
        let (rows, channels) = ((self.size[1] * self.size[2]) as i32, self.shape.channels() as i32);
        let grid = Grid { blocks: self.sums.blocks, threads: 256, shared: 0 };
        let (gpu, factor) = (&self.gpu, 1.0_f32);
        // SAFETY: the caller's promise.
        unsafe {
            match bend {
                None => launch!(gpu, on, function, grid, [x, factor, parts, squares, rows, channels]),
                Some((gates, Slope { gain, limit })) => {
                    launch!(gpu, on, function, grid, [x, gates, gain, limit, factor, parts, squares, rows, channels])
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the kernel's")]
    unsafe fn reduce(
        &self,
        parts: Address,
        factor: f32,
        sums: Address,
        squares: Address,
        share: f64,
        losses: Address,
        slot: Address,
    ) -> Result<()> {
        let function = self.gpu.function(Source::Step, "reduce_sums")?;
        let length = self.size[0] * self.shape.channels();
        let (count, square_count, values) = (self.sums.parts() as i32, self.sums.count() as i32, length as i32);
        let grid = Grid { blocks: (length.div_ceil(32) as u32, 1, 1), threads: 256, shared: 0 };
        let gpu = &self.gpu;
        // SAFETY: the caller's promise.
        unsafe {
            launch!(
                gpu,
                On::Side,
                function,
                grid,
                [parts, count, values, factor, sums, squares, square_count, share, losses, slot]
            )
        }
    }
}

/// Sizes that the kernels' 32-bit counts of rows, and the products' dimensions, can hold.
fn fits_kernels(values: usize) -> bool {
    values <= 1 << 40
}
