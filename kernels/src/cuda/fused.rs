//! Where the fused kernels keep their planes in shared memory. Mirrors the structs of `cuda/fused.cu`.

use super::gpu::Address;
use crate::error::Result;
use crate::shape::{BlockShape, Gate};

/// The largest kernel size that the fused kernels were compiled for.
pub(super) const LARGEST: usize = 13;
const MAX_SCALES: usize = 3;
/// Bytes of a table of taps, a row of taps.
const TAP_ROW: usize = 128;
/// Bytes behind the planes that a product's last columns may read, to throw the result away. On the way back, where planes
/// and sums are written while others are read, nothing else lies there.
const SLACK: usize = 128;
/// Bytes of shared memory from which a block gets twice the threads, since few of them fit a multiprocessor.
const LARGE_FORWARD: usize = 48 << 10;
const LARGE_BACKWARD: usize = 56 << 10;
/// Rows that a unit of small maps gathers from several images.
const FORWARD_ROWS: usize = 128;
const BACKWARD_ROWS: usize = 64;
/// Parts that sums over a batch are left in, at most.
const MOST_PARTS: usize = 32;
/// Shared memory of a forward block above which a map is cut into strips.
const FORWARD_SHARED: usize = 100 << 10;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scale {
    height: i32,
    width: i32,
    tiles: i32,
    halves: i32,
    rows: i32,
    pitch_x: i32,
    pitch_g: i32,
    x: i32,
    g: i32,
    small: i32,
    taps: i32,
    turned: i32,
    sums: i32,
}

/// The kernels' argument.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Middle {
    pub(super) batch: i32,
    pub(super) height: i32,
    pub(super) width: i32,
    pub(super) half: i32,
    pub(super) scales: i32,
    pub(super) gate: i32,
    pub(super) factor: f32,
    pub(super) images: i32,
    pub(super) parts: i32,
    pub(super) strip: i32,
    pub(super) strips: i32,
    pub(super) zero_row: i32,
    pub(super) scratch: i32,
    pub(super) zero_end: i32,
    pub(super) scale: [Scale; MAX_SCALES],
    pub(super) h: Address,
    pub(super) bias: Address,
    pub(super) upright: Address,
    pub(super) turned: Address,
    pub(super) features: Address,
    pub(super) feature_gradient: Address,
    pub(super) hidden_gradient: Address,
    pub(super) taps_parts: Address,
    pub(super) bias_parts: Address,
}

const _: () = assert!(size_of::<Middle>() == 288, "cuda/fused.cu says the same");

/// A kernel's argument without its addresses, its grid and its shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) middle: Middle,
    pub(super) blocks: (u32, u32, u32),
    pub(super) threads: u32,
    /// Bytes.
    pub(super) shared: usize,
    /// Parts of the sums (backward).
    pub(super) parts: usize,
}

/// What a device has for blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) multiprocessors: usize,
    /// Bytes of shared memory that one block may have.
    pub(super) shared: usize,
}

impl Room {
    /// Whether so many blocks run all at the same time. A multiprocessor has 65536 registers, and as much shared memory
    /// as one block may have, of which each takes 1 KiB more than it asks for.
    fn at_once(self, blocks: usize, threads: usize, registers: usize, shared: usize) -> bool {
        let each = (65536 / (registers * threads)).min((self.shared + 1024) / (shared + 1024));
        blocks <= self.multiprocessors * each
    }
}

/// Registers of a thread of `middle_backward`, by its launch bounds.
fn registers(kernel: usize) -> usize {
    if kernel <= 7 { 64 } else { 128 }
}

/// The margins that a kernel size asks for; `cuda/fused.cu` says why.
#[derive(Clone, Copy)]
struct Margins {
    pad: usize,
    chunks_x: usize,
    chunks_g: usize,
    span: usize,
}

impl Margins {
    fn new(kernel: usize) -> Self {
        let near = kernel <= 9;
        Self {
            pad: kernel / 2,
            chunks_x: if near { 2 } else { 3 },
            chunks_g: if kernel == 1 { 2 } else { 3 },
            span: if near { 3 } else { 4 },
        }
    }
}

/// Hands out shared memory from the start on.
#[derive(Default)]
struct Region(usize);

impl Region {
    fn take(&mut self, bytes: usize) -> i32 {
        let start = self.0;
        self.0 += bytes.next_multiple_of(16);
        start as i32
    }
}

/// Columns of zeros to the left of an input plane.
pub(super) fn left(kernel: usize) -> usize {
    if kernel <= 9 { 4 } else { 8 }
}

/// Whether there are fused kernels for the block at all.
pub(super) fn fits(shape: &BlockShape) -> bool {
    shape.kernel_size() <= LARGEST && shape.scales().len() <= MAX_SCALES
}

/// The forward kernel's launch; `None` where not even a strip of a row fits.
pub(super) fn forward(shape: &BlockShape, size: [usize; 3], room: Room) -> Result<Option<Launch>> {
    let [batch, height, _] = size;
    let limit = FORWARD_SHARED.min(room.shared);
    let images = if height < BACKWARD_ROWS { (FORWARD_ROWS / height).clamp(1, batch) } else { 1 };
    let mut launch = forward_with(shape, size, images, height)?;
    // Few large maps are cut into strips, to have blocks for all of the device.
    let few = |launch: &Launch| launch.blocks.0 * launch.blocks.1 < 2 * room.multiprocessors as u32;
    let mut strip = height.next_multiple_of(16);
    while strip > 16 && (launch.shared > limit || images == 1 && few(&launch)) {
        strip -= 16;
        launch = forward_with(shape, size, 1, strip)?;
    }
    Ok((launch.shared <= room.shared).then_some(launch))
}

fn forward_with(shape: &BlockShape, size: [usize; 3], images: usize, strip: usize) -> Result<Launch> {
    let [batch, height, width] = size;
    let Margins { pad, chunks_x, .. } = Margins::new(shape.kernel_size());
    let strips = height.div_ceil(strip);
    let maps = maps(shape, size)?;
    // The most rows that any strip needs of each scale: as `middle_forward` computes them.
    let mut rows = vec![0; maps.len()];
    let mut small_rows = vec![0; maps.len()];
    for first in (0..height).step_by(strip) {
        let last = (first + strip).min(height);
        let (mut base, mut end) = (first as isize - pad as isize, last + pad);
        for (index, &(map_height, _)) in maps.iter().enumerate().skip(1) {
            let low = sample(first, map_height, height).0;
            let high = sample(last - 1, map_height, height).1 + 1;
            small_rows[index] = small_rows[index].max(high - low);
            rows[index] = rows[index].max(high - low + 2 * pad);
            base = base.min((low.saturating_sub(pad) * height / map_height) as isize);
            end = end.max(((high + pad).min(map_height) * height).div_ceil(map_height));
        }
        rows[0] = rows[0].max((end as isize - base) as usize);
    }
    let mut region = Region::default();
    let mut scale = [Scale::default(); MAX_SCALES];
    for (index, &(map_height, map_width)) in maps.iter().enumerate() {
        let tiles = map_width.div_ceil(8);
        let pitch = ((tiles + chunks_x - 1) | 1) * 8;
        scale[index] = Scale {
            height: map_height as i32,
            width: map_width as i32,
            tiles: tiles as i32,
            halves: i32::from((height, width) == (2 * map_height, 2 * map_width)),
            rows: rows[index] as i32,
            pitch_x: pitch as i32,
            x: region.take(2 * images * rows[index] * pitch * 2),
            ..Scale::default()
        };
    }
    let zero_end = region.0;
    for (index, &(_, map_width)) in maps.iter().enumerate() {
        scale[index].taps = region.take(2 * shape.kernel_size() * TAP_ROW);
        if index > 0 {
            scale[index].small = region.take(images * small_rows[index] * map_width * 4);
        }
    }
    let units = batch.div_ceil(images) * strips;
    let middle = Middle {
        images: images as i32,
        strip: strip as i32,
        strips: strips as i32,
        zero_end: zero_end as i32,
        scale,
        ..common(shape, size)
    };
    let blocks = (shape.half() as u32, units as u32, 1);
    let threads = if region.0 > LARGE_FORWARD { 256 } else { 128 };
    Ok(Launch { middle, blocks, threads, shared: region.0 + SLACK, parts: 1 })
}

/// The backward kernel's launch; `None` where the planes don't fit.
pub(super) fn backward(shape: &BlockShape, size: [usize; 3], room: Room) -> Result<Option<Launch>> {
    let [batch, height, width] = size;
    let kernel = shape.kernel_size();
    let Margins { pad, chunks_x, chunks_g, span } = Margins::new(kernel);
    let maps = maps(shape, size)?;
    let mut images = (BACKWARD_ROWS / height).clamp(1, batch);
    loop {
        let mut region = Region::default();
        let mut scale = [Scale::default(); MAX_SCALES];
        for (index, &(map_height, map_width)) in maps.iter().enumerate() {
            let (tiles, blocks, rows) = (map_width.div_ceil(8), map_width.div_ceil(16), map_height + 2 * pad);
            let pitch_x = ((tiles + chunks_x - 1).max(2 * blocks - 2 + span) | 1) * 8;
            let pitch_g = ((tiles + chunks_g - 1).max(1 + 2 * blocks) | 1) * 8;
            scale[index] = Scale {
                height: map_height as i32,
                width: map_width as i32,
                tiles: tiles as i32,
                halves: i32::from((height, width) == (2 * map_height, 2 * map_width)),
                rows: rows as i32,
                pitch_x: pitch_x as i32,
                pitch_g: pitch_g as i32,
                x: region.take(2 * images * rows * pitch_x * 2 + SLACK),
                g: region.take(2 * images * rows * pitch_g * 2 + SLACK),
                sums: region.take(2 * kernel * kernel * 4),
                ..Scale::default()
            };
        }
        let zero_row = region.take(width.div_ceil(16) * 32);
        let zero_end = region.0;
        for (index, &(map_height, map_width)) in maps.iter().enumerate() {
            scale[index].taps = region.take(2 * kernel * TAP_ROW);
            scale[index].turned = region.take(2 * kernel * TAP_ROW);
            if index > 0 {
                scale[index].small = region.take(2 * images * map_height * map_width * 4);
            }
        }
        let units = batch.div_ceil(images);
        // As many blocks as there are units, so that the last ones don't wait; but few enough parts to add up.
        let parts = units.min(MOST_PARTS);
        let scratch_of = |threads: usize| threads / 32 * 16 * (span * 8 + 1) * 4;
        let at_once = |threads: usize| {
            let shared = region.0 + scratch_of(threads);
            room.at_once(shape.half() * parts, threads, registers(kernel), shared)
        };
        let threads = match kernel {
            ..=7 if region.0 > LARGE_BACKWARD => 512,
            _ if !at_once(256) && at_once(192) => 192,
            _ => 256,
        };
        let scratch = region.take(scratch_of(threads));
        let shared = region.0;
        // The kernel has a few variables of its own.
        if shared + 1024 > room.shared {
            if images == 1 {
                return Ok(None);
            }
            images = images.div_ceil(2);
            continue;
        }
        let middle = Middle {
            images: images as i32,
            parts: parts as i32,
            strip: height as i32,
            strips: 1,
            zero_row,
            scratch,
            zero_end: zero_end as i32,
            scale,
            ..common(shape, size)
        };
        let (blocks, threads) = ((shape.half() as u32, parts as u32, 1), threads as u32);
        return Ok(Some(Launch { middle, blocks, threads, shared, parts }));
    }
}

fn common(shape: &BlockShape, [batch, height, width]: [usize; 3]) -> Middle {
    Middle {
        batch: batch as i32,
        height: height as i32,
        width: width as i32,
        half: shape.half() as i32,
        scales: shape.scales().len() as i32,
        gate: gate(shape.gate()),
        factor: (shape.half() as f32).sqrt(),
        ..Middle::default()
    }
}

/// The kernels' number for a gate.
pub(super) fn gate(gate: Gate) -> i32 {
    match gate {
        Gate::Scaled => 0,
        Gate::Sigmoid => 1,
    }
}

/// The map's size at each scale.
pub(super) fn maps(shape: &BlockShape, [_, height, width]: [usize; 3]) -> Result<Vec<(usize, usize)>> {
    shape.scales().iter().map(|&scale| shape.scaled_map(height, width, scale)).collect()
}

/// The two inputs of an enlargement's output, in the arithmetic of `common.cuh`.
fn sample(index: usize, inputs: usize, outputs: usize) -> (usize, usize) {
    let position = ((index as f32 + 0.5) * (inputs as f32 / outputs as f32) - 0.5).max(0.0);
    let low = (position as usize).min(inputs - 1);
    (low, (low + 1).min(inputs - 1))
}
