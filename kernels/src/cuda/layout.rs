//! Where a pass' buffers lie, and how its sums over positions are cut.

use super::gpu::Address;
use super::product::Type;

/// Blocks that a reduction over positions is cut into, at least, so that it fills a device.
const REDUCTION_BLOCKS: usize = 528;
/// Tiles of 128×128 that a product over positions may have; its sum is cut into parts until it has about so many.
const TILES: usize = 128;
const TILE_VALUES: usize = 128 * 128;
/// Positions that one part of a sum has at least.
const PART_POSITIONS: usize = 1024;

/// Where the buffers lie; 0 for those that the pass has not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Buffers {
    /// conv_up's output without its bias, planes [d, B, H, W]; its gradient replaces it.
    pub(super) hidden: Address,
    /// [S·d/2, B, H, W].
    pub(super) features: Address,
    pub(super) feature_gradient: Address,
    /// y − target, then twice its half: the squared error's gradient but for the factor. [B, H, W, C].
    pub(super) residual: Address,
    pub(super) input_parts: Address,
    pub(super) residual_parts: Address,
    pub(super) squares: Address,
    /// f32 [B, C].
    pub(super) means: Address,
    pub(super) residual_sums: Address,
    /// What all positions of an image share, [B, C].
    pub(super) shared: Address,
    pub(super) out_parts: Address,
    pub(super) up_parts: Address,
    pub(super) taps_parts: Address,
    pub(super) bias_parts: Address,
}

impl Buffers {
    /// From offsets to addresses.
    pub(super) fn shift(&mut self, base: Address) {
        let Self {
            hidden,
            features,
            feature_gradient,
            residual,
            input_parts,
            residual_parts,
            squares,
            means,
            residual_sums,
            shared,
            out_parts,
            up_parts,
            taps_parts,
            bias_parts,
        } = self;
        let all = [hidden, features, feature_gradient, residual, input_parts, residual_parts, squares];
        let more = [means, residual_sums, shared, out_parts, up_parts, taps_parts, bias_parts];
        for address in all.into_iter().chain(more) {
            *address += base;
        }
    }
}

/// How the sums over positions are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnSums {
    pub(super) blocks: (u32, u32, u32),
    pub(super) wide: bool,
}

impl ColumnSums {
    pub(super) fn new(channels: usize, [batch, height, width]: [usize; 3], kind: Type) -> Self {
        let lanes = 16 / kind.bytes();
        let wide = channels.is_multiple_of(lanes);
        let columns = channels.div_ceil(8 * if wide { lanes } else { 1 });
        let parts = REDUCTION_BLOCKS.div_ceil(columns * batch).clamp(1, (height * width).div_ceil(64));
        Self { blocks: (columns as u32, parts as u32, batch as u32), wide }
    }

    pub(super) fn parts(self) -> usize {
        self.blocks.1 as usize
    }

    pub(super) fn count(self) -> usize {
        self.blocks.0 as usize * self.blocks.1 as usize * self.blocks.2 as usize
    }
}

/// Hands out parts of one allocation.
#[derive(Default)]
pub(super) struct Plan(pub(super) usize);

impl Plan {
    pub(super) fn take(&mut self, bytes: usize) -> u64 {
        let start = self.0;
        self.0 += bytes.next_multiple_of(256);
        start as u64
    }
}

/// Into how many equal parts the sum over positions is cut that gives a matrix of so many values.
pub(super) fn parts(positions: usize, values: usize) -> usize {
    let most = (TILES * TILE_VALUES / values).min(positions / PART_POSITIONS).max(1);
    let even = |parts: &usize| positions.is_multiple_of(*parts) && (positions / parts).is_multiple_of(8);
    (1..=most).rev().find(even).unwrap_or(1)
}
