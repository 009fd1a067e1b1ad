//! The correlation of one plane with a kernel that differs per channel, in register tiles.
//!
//! `out[y][x] = Σ input[y + ky − margin][x + kx − margin] · kernel[ky][kx]`, each channel by itself.
//! The forward pass, the input's gradient (kernel flipped) and the weights' gradient (the output's
//! gradient as a kernel of the map's size, the weights as the output) are all this one sum.

use super::grouped::Extent;
use super::instruction_set::multiversion;
use super::lanes::{Group, LANES, Lanes};

/// The kernel of one correlation: `[height, width]` groups, rows `row` groups apart.
#[derive(Clone, Copy)]
pub(super) struct Kernel<'a> {
    pub(super) values: &'a [Group],
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) row: usize,
}

multiversion! {
    /// Writes the correlation of a plane, whose margins are zero, to `out`
    /// `[height + 2·margin − kernel.height + 1, width + 2·margin − kernel.width + 1]`.
    pub(super) fn correlate<V>(
        input: &[Group],
        extent: Extent,
        kernel: Kernel<'_>,
        out: &mut [Group],
    ) {
        let out_height = extent.height + 2 * extent.margin + 1 - kernel.height;
        let out_width = extent.row() + 1 - kernel.width;
        // The tiles read and write through pointers; these bounds are what makes that sound.
        assert_eq!(input.len(), extent.len());
        assert_eq!(out.len(), out_height * out_width);
        assert!(kernel.height > 0 && kernel.width <= kernel.row);
        assert!(kernel.values.len() >= (kernel.height - 1) * kernel.row + kernel.width);

        let tiles = out_width.div_ceil(V::TILE_WIDTH);
        let (narrow, wider) = (out_width / tiles, out_width % tiles);
        let mut y = 0;
        while y < out_height {
            let rows = (out_height - y).min(2);
            let mut x = 0;
            for index in 0..tiles {
                let width = narrow + usize::from(index < wider);
                let target = &mut out[y * out_width + x..];
                let target = (target.as_mut_ptr().cast::<f32>(), out_width);
                // SAFETY: y + rows ≤ out_height and x + width ≤ out_width, and the bounds above.
                unsafe {
                    match rows {
                        2 => tile_of_width::<V, 2>(input, extent, kernel, y, x, width, target),
                        _ => tile_of_width::<V, 1>(input, extent, kernel, y, x, width, target),
                    }
                }
                x += width;
            }
            y += rows;
        }
    }
}

/// Turns the tile's width into a constant, so that its sums live in registers.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn tile_of_width<V: Lanes, const ROWS: usize>(
    input: &[Group],
    extent: Extent,
    kernel: Kernel<'_>,
    y: usize,
    x: usize,
    width: usize,
    target: (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            1 => tile::<V, ROWS, 1>(input, extent, kernel, y, x, target),
            2 => tile::<V, ROWS, 2>(input, extent, kernel, y, x, target),
            3 => tile::<V, ROWS, 3>(input, extent, kernel, y, x, target),
            4 => tile::<V, ROWS, 4>(input, extent, kernel, y, x, target),
            5 => tile::<V, ROWS, 5>(input, extent, kernel, y, x, target),
            6 => tile::<V, ROWS, 6>(input, extent, kernel, y, x, target),
            7 => tile::<V, ROWS, 7>(input, extent, kernel, y, x, target),
            8 => tile::<V, ROWS, 8>(input, extent, kernel, y, x, target),
            _ => unreachable!("tiles are at most TILE_WIDTH ≤ 8 wide"),
        }
    }
}

/// One tile of ROWS×WIDTH outputs at (y, x).
///
/// # Safety
/// The tile lies within the output; `target` points to its first group in an output whose rows are
/// `target.1` groups apart; input and kernel have the extents they state; the processor has the
/// instruction set of `V`.
#[inline(always)]
unsafe fn tile<V: Lanes, const ROWS: usize, const WIDTH: usize>(
    input: &[Group],
    extent: Extent,
    kernel: Kernel<'_>,
    y: usize,
    x: usize,
    target: (*mut f32, usize),
) {
    let margin = extent.margin;
    // Only rows and columns of the map itself count; what a tap finds in the margins is zero.
    let first_row = y.saturating_sub(margin);
    let last_row = (y + ROWS - 1 + kernel.height).saturating_sub(margin).min(extent.height);
    let first_column = margin.saturating_sub(x + WIDTH - 1);
    let last_column = (extent.width + margin).saturating_sub(x).min(kernel.width);

    for part in 0..LANES / V::WIDTH {
        let lane = part * V::WIDTH;
        let mut sums = [[V::zero(); WIDTH]; ROWS];
        for row in first_row..last_row {
            let columns = first_column..last_column;
            // The first output row sees this input row through kernel row `tap`, the second through
            // the one before; at the kernel's edges only one of them sees it.
            let tap = row + margin - y;
            // SAFETY: row < height, and a column of the tile plus a column of the kernel stays
            // within the row; `tap` and `tap − 1` are checked against the kernel's height.
            unsafe {
                let row = input.as_ptr().add(row * extent.row() + x).cast::<f32>().add(lane);
                let taps = |tap: usize| kernel.values.as_ptr().add(tap * kernel.row).cast::<f32>().add(lane);
                if ROWS == 1 {
                    add_row(&mut sums, row, [taps(tap); ROWS], columns);
                } else if tap == 0 {
                    add_first_row(&mut sums, row, taps(tap), columns);
                } else if tap == kernel.height {
                    add_last_row(&mut sums, row, taps(tap - 1), columns);
                } else {
                    let both = std::array::from_fn(|r| taps(tap - r));
                    add_row(&mut sums, row, both, columns);
                }
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (t, &sum) in row.iter().enumerate() {
                // SAFETY: the tile lies within the output.
                unsafe { sum.store(target.0.add((r * target.1 + t) * LANES + lane)) };
            }
        }
    }
}

/// Adds one input row to every row of sums, each through its own kernel row. A value is loaded once
/// for all rows of sums, so that the multiplications and not the loads are what takes time.
///
/// # Safety
/// `input` has `columns.end − 1 + WIDTH` groups to read and each of `taps` `columns.end`.
#[expect(clippy::needless_range_loop, reason = "constant bounds, unrolled into registers")]
#[inline(always)]
unsafe fn add_row<V: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[V; WIDTH]; ROWS],
    input: *const f32,
    taps: [*const f32; ROWS],
    columns: std::ops::Range<usize>,
) {
    for column in columns {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = taps.map(|tap| V::load(tap.add(column * LANES)));
            for t in 0..WIDTH {
                let value = V::load(input.add((column + t) * LANES));
                for r in 0..ROWS {
                    sums[r][t] = value.mul_add(weights[r], sums[r][t]);
                }
            }
        }
    }
}

/// [`add_row`] for the first row of sums only.
///
/// # Safety
/// As for [`add_row`].
#[inline(always)]
unsafe fn add_first_row<V: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[V; WIDTH]; ROWS],
    input: *const f32,
    taps: *const f32,
    columns: std::ops::Range<usize>,
) {
    let mut row = [sums[0]];
    // SAFETY: the caller's promise.
    unsafe { add_row(&mut row, input, [taps], columns) };
    sums[0] = row[0];
}

/// [`add_row`] for the last row of sums only.
///
/// # Safety
/// As for [`add_row`].
#[inline(always)]
unsafe fn add_last_row<V: Lanes, const ROWS: usize, const WIDTH: usize>(
    sums: &mut [[V; WIDTH]; ROWS],
    input: *const f32,
    taps: *const f32,
    columns: std::ops::Range<usize>,
) {
    let mut row = [sums[ROWS - 1]];
    // SAFETY: the caller's promise.
    unsafe { add_row(&mut row, input, [taps], columns) };
    sums[ROWS - 1] = row[0];
}
