//! The block's middle, between conv_up and conv_out: fused where the fused kernels can, else stage by stage.

use super::fused::{self, Launch, Room};
use super::gpu::{Address, Gpu, Grid, On, Source, launch};
use super::product::Type;
use super::weights::{Taps, suffix};
use crate::error::Result;
use crate::shape::BlockShape;

/// How the middle is computed.
#[derive(Debug)]
pub(super) enum Middle {
    Fused { kernel: usize, forward: Box<Launch>, backward: Option<Box<Launch>> },
    Staged(Staged),
}

/// The planes that pass between the stages.
#[derive(Debug)]
pub(super) struct Staged {
    shape: BlockShape,
    size: [usize; 3],
    kind: Type,
    maps: Vec<(usize, usize)>,
    scales: Vec<ScaleBuffers>,
    /// f32 [d, B, H, W]: h's gradient before it is rounded; may be `h` itself where that is f32.
    full: Option<Address>,
}

#[derive(Debug, Clone, Copy, Default)]
struct ScaleBuffers {
    /// f32 [d, B, h, w]: the averages; absent at the first scale. Later their gradient.
    input: Address,
    /// f32 [d, B, h, w]: the convolution's output. Later its gradient.
    convolved: Address,
    /// f32 [d/2, B, h, w]: what the gate gives; absent at the first scale. Later its gradient.
    gated: Address,
}

/// Mirrors `Map` of `cuda/planes.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Map {
    channels: i32,
    batch: i32,
    height: i32,
    width: i32,
}

fn launches(
    gpu: &Gpu,
    shape: &BlockShape,
    size: [usize; 3],
    kind: Type,
    training: bool,
) -> Result<Option<(Launch, Option<Launch>)>> {
    if kind != Type::Bf16 || !fused::fits(shape) {
        return Ok(None);
    }
    let room = Room { multiprocessors: gpu.multiprocessors, shared: gpu.shared_limit };
    let Some(forward) = fused::forward(shape, size, room)? else { return Ok(None) };
    if !training {
        return Ok(Some((forward, None)));
    }
    let backward = fused::backward(shape, size, room)?;
    Ok(backward.map(|backward| (forward, Some(backward))))
}

impl Middle {
    /// How the middle is computed, and the bytes of buffers that it needs, which [`Self::place`] gives it.
    pub(super) fn new(
        gpu: &Gpu,
        shape: &BlockShape,
        size: [usize; 3],
        kind: Type,
        training: bool,
    ) -> Result<(Self, usize)> {
        if let Some((forward, backward)) = launches(gpu, shape, size, kind, training)? {
            let (forward, backward) = (Box::new(forward), backward.map(Box::new));
            return Ok((Self::Fused { kernel: shape.kernel_size(), forward, backward }, 0));
        }
        let (staged, bytes) = Staged::new(shape, size, kind)?;
        Ok((Self::Staged(staged), bytes))
    }

    /// Sets where the buffers begin.
    pub(super) fn place(&mut self, at: Address) {
        let Self::Staged(staged) = self else { return };
        for ScaleBuffers { input, convolved, gated } in &mut staged.scales {
            for address in [input, convolved, gated] {
                *address += at;
            }
        }
        staged.full = staged.full.map(|full| full + at);
    }

    /// Parts that the sums over a batch are left in.
    pub(super) fn sum_parts(&self) -> usize {
        match self {
            Self::Fused { backward, .. } => backward.as_ref().map_or(1, |backward| backward.parts),
            Self::Staged(_) => 1,
        }
    }

    /// features [S·d/2, B, H, W] of h [d, B, H, W] without its bias.
    ///
    /// # Safety
    /// The addresses must hold that much of the pass' type; the bias is f32.
    pub(super) unsafe fn forward(
        &self,
        gpu: &Gpu,
        h: Address,
        bias: Address,
        taps: Taps,
        features: Address,
    ) -> Result<()> {
        match self {
            Self::Fused { kernel, forward, .. } => {
                let function = gpu.function(Source::Fused(*kernel), "middle_forward")?;
                let middle = fused::Middle { h, bias, upright: taps.upright, features, ..forward.middle };
                let grid = Grid { blocks: forward.blocks, threads: forward.threads, shared: forward.shared as u32 };
                // SAFETY: the caller's promise.
                unsafe { launch!(gpu, On::Main, function, grid, [middle]) }
            }
            // SAFETY: the caller's promise.
            Self::Staged(staged) => unsafe { staged.forward(gpu, h, bias, taps.plain, features) },
        }
    }

    /// The gradient of h, which may take h's place, and parts of those of the taps and of the bias.
    ///
    /// # Safety
    /// As for [`Self::forward`], which must have run before.
    #[expect(clippy::too_many_arguments, reason = "the step's buffers, each by its name")]
    pub(super) unsafe fn backward(
        &self,
        gpu: &Gpu,
        h: Address,
        bias: Address,
        taps: Taps,
        feature_gradient: Address,
        hidden_gradient: Address,
        (taps_parts, bias_parts): (Address, Address),
    ) -> Result<()> {
        match self {
            Self::Fused { kernel, backward, .. } => {
                let Some(backward) = backward else { return Ok(()) };
                let function = gpu.function(Source::Fused(*kernel), "middle_backward")?;
                let middle = fused::Middle {
                    h,
                    bias,
                    upright: taps.upright,
                    turned: taps.turned,
                    feature_gradient,
                    hidden_gradient,
                    taps_parts,
                    bias_parts,
                    ..backward.middle
                };
                let grid = Grid { blocks: backward.blocks, threads: backward.threads, shared: backward.shared as u32 };
                // SAFETY: the caller's promise.
                unsafe { launch!(gpu, On::Main, function, grid, [middle]) }
            }
            // SAFETY: the caller's promise.
            Self::Staged(staged) => unsafe {
                staged.backward(gpu, h, bias, taps.plain, feature_gradient, hidden_gradient, taps_parts, bias_parts)
            },
        }
    }
}

impl Staged {
    /// The stages with their buffers from 0 on, and the bytes of these.
    fn new(shape: &BlockShape, size: [usize; 3], kind: Type) -> Result<(Self, usize)> {
        let maps = fused::maps(shape, size)?;
        let mut end = 0;
        let mut take = |values: usize| {
            let start = end as u64;
            end += (values * 4).next_multiple_of(256);
            start
        };
        let d = shape.inner();
        let mut scales = Vec::new();
        for (index, (height, width)) in maps.iter().enumerate() {
            let positions = size[0] * height * width;
            let mut buffers = ScaleBuffers { convolved: take(d * positions), ..ScaleBuffers::default() };
            if index > 0 {
                buffers.input = take(d * positions);
                buffers.gated = take(shape.half() * positions);
            }
            scales.push(buffers);
        }
        let full = (kind != Type::F32).then(|| take(d * size.iter().product::<usize>()));
        let staged = Self { shape: shape.clone(), size, kind, maps, scales, full };
        Ok((staged, end))
    }

    fn map(&self, index: usize, channels: usize) -> Map {
        let (height, width) = self.maps[index];
        Map { channels: channels as i32, batch: self.size[0] as i32, height: height as i32, width: width as i32 }
    }

    /// A loop over the planes of so many channels at one scale.
    fn grid(&self, index: usize, channels: usize) -> Grid {
        let (height, width) = self.maps[index];
        Grid::over(channels * self.size[0] * height * width)
    }

    /// The address of one scale's taps, and of its features.
    fn parts(&self, index: usize, taps: Address, features: Address) -> (Address, Address) {
        let kernel = self.shape.kernel_size();
        let bytes = self.kind.bytes();
        let taps = taps + (index * self.shape.inner() * kernel * kernel * bytes) as u64;
        let positions: usize = self.size.iter().product();
        (taps, features + (index * self.shape.half() * positions * bytes) as u64)
    }

    unsafe fn forward(&self, gpu: &Gpu, h: Address, bias: Address, taps: Address, features: Address) -> Result<()> {
        let (d, half) = (self.shape.inner(), self.shape.half());
        let kernel = self.shape.kernel_size() as i32;
        let (kind, factor) = (fused::gate(self.shape.gate()), (half as f32).sqrt());
        let own = suffix(self.kind);
        let small = if self.kind == Type::F32 { "convolve_f32" } else { "convolve_small_bf16" };
        let named = |stage: &str| gpu.function(Source::Planes, &format!("{stage}_{own}"));
        let (none, upright) = (0 as Address, 0_i32);
        for (index, buffers) in self.scales.iter().enumerate() {
            let (taps, features) = self.parts(index, taps, features);
            let ScaleBuffers { input, convolved, gated } = *buffers;
            let (all, map_half) = (self.map(index, d), self.map(index, half));
            // SAFETY: the caller's promise, and the buffers' sizes.
            unsafe {
                if index == 0 {
                    let grid = self.grid(0, d);
                    launch!(gpu, On::Main, named("convolve")?, grid, [h, bias, taps, convolved, all, kernel, upright])?;
                    launch!(
                        gpu,
                        On::Main,
                        named("gate")?,
                        self.grid(0, half),
                        [convolved, features, map_half, kind, factor]
                    )?;
                } else {
                    let (full, full_half) = (self.map(0, d), self.map(0, half));
                    let (height, width) = (all.height, all.width);
                    let grid = self.grid(index, d);
                    launch!(gpu, On::Main, named("pool")?, grid, [h, bias, input, full, height, width])?;
                    let convolve = gpu.function(Source::Planes, small)?;
                    launch!(gpu, On::Main, convolve, grid, [input, none, taps, convolved, all, kernel, upright])?;
                    let gate = gpu.function(Source::Planes, "gate_f32")?;
                    launch!(gpu, On::Main, gate, self.grid(index, half), [convolved, gated, map_half, kind, factor])?;
                    let grid = self.grid(0, half);
                    launch!(gpu, On::Main, named("enlarge")?, grid, [gated, features, full_half, height, width])?;
                }
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the step's buffers, each by its name")]
    unsafe fn backward(
        &self,
        gpu: &Gpu,
        h: Address,
        bias: Address,
        taps: Address,
        feature_gradient: Address,
        hidden_gradient: Address,
        taps_parts: Address,
        bias_parts: Address,
    ) -> Result<()> {
        let (d, half) = (self.shape.inner(), self.shape.half());
        let kernel_size = self.shape.kernel_size();
        let kernel = kernel_size as i32;
        let (kind, factor) = (fused::gate(self.shape.gate()), (half as f32).sqrt());
        let own = suffix(self.kind);
        let named = |stage: &str| gpu.function(Source::Planes, &format!("{stage}_{own}"));
        let plain = |stage: &str| gpu.function(Source::Planes, stage);
        // h and its gradient's sums are the same size where h is f32, and h has been read when they are written.
        let full = self.full.unwrap_or(h);
        let tap_grid = Grid { blocks: (d as u32, (kernel_size * kernel_size) as u32, 1), threads: 256, shared: 0 };
        let (none, turned) = (0 as Address, 1_i32);
        let turning = if self.kind == Type::F32 { "convolve_f32" } else { "convolve_small_bf16" };
        // The smaller scales first: the full map's taps need h, which its gradient may replace.
        for index in (0..self.scales.len()).rev() {
            let (taps, feature_gradient) = self.parts(index, taps, feature_gradient);
            let sums = taps_parts + (index * kernel_size * kernel_size * d * 4) as u64;
            let ScaleBuffers { input, convolved, gated } = self.scales[index];
            let (all, map_half) = (self.map(index, d), self.map(index, half));
            let grid = self.grid(index, half);
            // SAFETY: the caller's promise, and the buffers' sizes.
            unsafe {
                if index == 0 {
                    let gate = named("gate_backward")?;
                    launch!(gpu, On::Main, gate, grid, [feature_gradient, convolved, map_half, kind, factor])?;
                    launch!(gpu, On::Main, named("taps_gradient")?, tap_grid, [convolved, h, bias, sums, all, kernel])?;
                } else {
                    let (full_half, height, width) = (self.map(0, half), all.height, all.width);
                    let enlarge = named("enlarge_backward")?;
                    launch!(gpu, On::Main, enlarge, grid, [feature_gradient, gated, full_half, height, width])?;
                    let gate = plain("gate_backward_f32")?;
                    launch!(gpu, On::Main, gate, grid, [gated, convolved, map_half, kind, factor])?;
                    let gradient = plain("taps_gradient_f32")?;
                    launch!(gpu, On::Main, gradient, tap_grid, [convolved, input, none, sums, all, kernel])?;
                }
                let target = if index == 0 { full } else { input };
                let grid = self.grid(index, d);
                launch!(gpu, On::Main, plain(turning)?, grid, [convolved, none, taps, target, all, kernel, turned])?;
            }
        }
        let all = self.map(0, d);
        for (index, buffers) in self.scales.iter().enumerate().skip(1) {
            let (height, width) = (self.maps[index].0 as i32, self.maps[index].1 as i32);
            let spread = plain("pool_backward")?;
            // SAFETY: as above.
            unsafe { launch!(gpu, On::Main, spread, self.grid(0, d), [buffers.input, full, all, height, width])? };
        }
        let grid = Grid { blocks: (d as u32, 1, 1), threads: 256, shared: 0 };
        // SAFETY: as above.
        unsafe { launch!(gpu, On::Main, named("finish_hidden")?, grid, [full, hidden_gradient, bias_parts, all]) }
    }
}
