//! The grouped layout, in which a map's channels lie sixteen by sixteen.
//!
//! Between the linears a map is a sequence of planes, one per sixteen channels, each a contiguous
//! `[height, row]` of [`Group`]s. The positions of a plane lie one cache line apart whatever the
//! number of channels, and no vector straddles two lines. The two halves that the gate multiplies
//! are grouped separately, so group j of one half always faces group j of the other; where d/2 is no
//! multiple of 16 the last group of each half is filled up with zeros.

use super::instruction_set::multiversion;
use super::lanes::{Group, LANES};

/// How the channels of one half are spread over groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grouping {
    /// d/2.
    pub(super) half: usize,
}

impl Grouping {
    /// Groups of one half.
    pub(super) fn per_half(self) -> usize {
        self.half.div_ceil(LANES)
    }

    /// The first channel of a group and how many it holds. Groups from `per_half` on belong to the
    /// second half.
    #[inline(always)]
    pub(super) fn channels(self, group: usize) -> (usize, usize) {
        let per_half = self.half.div_ceil(LANES);
        let within = group % per_half * LANES;
        (group / per_half * self.half + within, (self.half - within).min(LANES))
    }
}

/// The extent of one plane: `width` columns between two margins of zeros. There are no margins
/// above and below; the convolution leaves out the rows that would fall there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) margin: usize,
}

impl Extent {
    /// Groups from one row to the next.
    #[inline(always)]
    pub(super) fn row(self) -> usize {
        self.width + 2 * self.margin
    }

    /// Groups of a plane.
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.height * self.row()
    }
}

multiversion! {
    /// Copies `groups` groups of row-major `rows` `[height·width, stride]`, from column `column` on,
    /// into planes, adding `bias` `[stride]` where there is one. The margins stay as they are.
    pub(super) fn group<V>(
        rows: &[f32],
        stride: usize,
        column: usize,
        bias: Option<&[f32]>,
        grouping: Grouping,
        extent: Extent,
        planes: &mut [Group],
    ) {
        for (index, plane) in planes.chunks_exact_mut(extent.len()).enumerate() {
            let (channel, count) = grouping.channels(index);
            let first = column + channel;
            let mut added = Group::ZERO;
            if let Some(bias) = bias {
                added.0[..count].copy_from_slice(&bias[first..first + count]);
            }
            for (y, row) in plane.chunks_exact_mut(extent.row()).enumerate() {
                let positions = rows[y * extent.width * stride..].chunks(stride);
                let interior = &mut row[extent.margin..extent.margin + extent.width];
                for (group, position) in interior.iter_mut().zip(positions) {
                    let mut values = Group::ZERO;
                    copy_lanes(&position[first..first + count], &mut values.0[..count]);
                    for lane in 0..LANES {
                        group.0[lane] = values.0[lane] + added.0[lane];
                    }
                }
            }
        }
    }
}

multiversion! {
    /// Copies planes without margins back to row-major `rows` `[height·width, stride]`, from column
    /// `column` on.
    pub(super) fn ungroup<V>(
        planes: &[Group],
        grouping: Grouping,
        extent: Extent,
        rows: &mut [f32],
        stride: usize,
        column: usize,
    ) {
        debug_assert_eq!(extent.margin, 0);
        for (index, plane) in planes.chunks_exact(extent.len()).enumerate() {
            let (channel, count) = grouping.channels(index);
            let first = column + channel;
            for (group, position) in plane.iter().zip(rows.chunks_exact_mut(stride)) {
                copy_lanes(&group.0[..count], &mut position[first..first + count]);
            }
        }
    }
}

/// Copies up to sixteen values; a full group, the usual case, without a call of memcpy.
#[inline(always)]
pub(super) fn copy_lanes(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<LANES>(), to.first_chunk_mut::<LANES>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}
