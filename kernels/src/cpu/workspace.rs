//! The buffers of a block's passes, kept between calls.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::grouped::{Extent, Grouping};
use super::lanes::Group;
use super::pool::{Pooling, bins};
use super::resize::{Resizing, Sample, samples};
use super::weights::{GroupedKernel, PartialGradient};
use crate::error::Result;
use crate::shape::BlockShape;

/// Buffers that calls reuse. They are made anew where the block's shape or the map's size differs
/// from the last call's, and grow with the batch and the number of threads; otherwise a call
/// allocates no maps. Start with [`Workspace::default`].
#[derive(Debug, Default)]
pub struct Workspace {
    plan: Option<Plan>,
    /// One for each thread of the pool, locked for as long as its thread works on a sample.
    scratches: Vec<Mutex<Scratch>>,
    pub(super) kernels: Vec<GroupedKernel>,
    pub(super) batch: BatchSums,
}

/// What the samples of a batch leave for the end of the pass.
#[derive(Debug, Default)]
pub(super) struct BatchSums {
    /// Sums of squared differences `[B]`.
    pub(super) squares: Vec<f64>,
    /// Mean of x over positions `[B, C]`.
    pub(super) means: Vec<f32>,
    /// Sum over positions of y's gradient `[B, C]`.
    pub(super) gradient_sums: Vec<f32>,
    /// One [`PartialGradient`] per chunk of samples.
    pub(super) partials: Vec<f32>,
}

/// What follows from the block's shape and the size of its map.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) shape: BlockShape,
    pub(super) grouping: Grouping,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) maps: Vec<ScaledMap>,
}

/// The map of one scale, and how it is made from the full map and brought back to it.
#[derive(Debug)]
pub(super) struct ScaledMap {
    /// With margins of K/2.
    pub(super) padded: Extent,
    /// Without margins.
    pub(super) bare: Extent,
    bins: [Vec<Range<usize>>; 2],
    samples: [Vec<Sample>; 2],
}

/// The maps of the sample that one thread is working on.
#[derive(Debug)]
pub(super) struct Scratch {
    /// h, later its gradient, `[HW, d]`.
    pub(super) hidden: Vec<f32>,
    pub(super) scales: Vec<ScaleScratch>,
    /// p_s, later its gradient, without margins.
    pub(super) gated: Vec<Group>,
    /// One row of a small map.
    pub(super) row: Vec<Group>,
    /// conv_pool's output plus conv_out's bias `[C]`.
    pub(super) bias: Vec<f32>,
    /// The concatenated p_s, later their gradient, `[HW, S·d/2]`.
    pub(super) features: Vec<f32>,
    /// y, later its gradient, `[HW, C]`; empty before the first backward pass.
    pub(super) output: Vec<f32>,
    /// One plane of K×K.
    pub(super) taps: Vec<Group>,
}

/// The maps of one scale.
#[derive(Debug)]
pub(super) struct ScaleScratch {
    /// h_s, with margins.
    pub(super) input: Vec<Group>,
    /// g_s, later the gradient of h_s, without margins.
    pub(super) convolved: Vec<Group>,
    /// The gradient of g_s, with margins; empty before the first backward pass.
    pub(super) gradient: Vec<Group>,
}

impl Workspace {
    /// Gets the buffers ready for maps of `height`×`width`; with those of the backward pass if
    /// `backward`.
    pub(super) fn prepare(&mut self, shape: &BlockShape, height: usize, width: usize, backward: bool) -> Result<()> {
        let same =
            self.plan.as_ref().is_some_and(|plan| plan.shape == *shape && plan.height == height && plan.width == width);
        if !same {
            self.plan = Some(Plan::new(shape, height, width)?);
            self.scratches.clear();
            self.kernels = shape.scales().iter().map(|_| GroupedKernel::zeros(shape)).collect();
        }
        let Some(plan) = &self.plan else { return Ok(()) };
        while self.scratches.len() < rayon::current_num_threads() {
            self.scratches.push(Mutex::new(Scratch::new(plan)));
        }
        if backward {
            for scratch in &mut self.scratches {
                let scratch = scratch.get_mut().unwrap_or_else(PoisonError::into_inner);
                scratch.extend_for_backward(plan);
            }
        }
        Ok(())
    }

    /// The parts that a pass reads and writes at the same time.
    pub(super) fn parts(&mut self) -> (&Plan, &mut [GroupedKernel], &mut BatchSums, Scratches<'_>) {
        let plan = self.plan.as_ref().expect("`prepare` has been called and made a plan");
        (plan, &mut self.kernels, &mut self.batch, Scratches(&self.scratches))
    }
}

/// The scratches of all threads.
#[derive(Clone, Copy)]
pub(super) struct Scratches<'a>(&'a [Mutex<Scratch>]);

impl<'a> Scratches<'a> {
    /// The calling thread's own, so that its maps stay in the cache of its core.
    pub(super) fn of_this_thread(self) -> MutexGuard<'a, Scratch> {
        let index = rayon::current_thread_index().unwrap_or(0);
        // A panic elsewhere leaves stale values only, and every pass writes what it reads.
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BatchSums {
    /// Sizes the sums for a batch; `partials` is the number of chunks, 0 without backward pass.
    pub(super) fn resize(&mut self, shape: &BlockShape, batch: usize, partials: usize) {
        self.squares.resize(batch, 0.0);
        self.means.resize(batch * shape.channels(), 0.0);
        self.gradient_sums.resize(batch * shape.channels(), 0.0);
        self.partials.resize(partials * PartialGradient::len(shape), 0.0);
    }
}

impl Plan {
    fn new(shape: &BlockShape, height: usize, width: usize) -> Result<Self> {
        let map = |&scale: &f64| {
            let (small_height, small_width) = shape.scaled_map(height, width, scale)?;
            let margin = shape.kernel_size() / 2;
            let bare = Extent { height: small_height, width: small_width, margin: 0 };
            Ok(ScaledMap {
                padded: Extent { margin, ..bare },
                bare,
                bins: [bins(height, small_height), bins(width, small_width)],
                samples: [samples(small_height, height), samples(small_width, width)],
            })
        };
        let maps = shape.scales().iter().map(map).collect::<Result<_>>()?;
        let grouping = Grouping { half: shape.half() };
        Ok(Self { shape: shape.clone(), grouping, height, width, maps })
    }

    /// Positions of the full map.
    pub(super) fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Whether a scale has the size of the full map, so that nothing is pooled or enlarged.
    pub(super) fn is_full(&self, scale: usize) -> bool {
        self.maps[scale].bare == self.maps[0].bare
    }

    /// How the padded full map is averaged into the padded map of one scale.
    pub(super) fn pooling(&self, scale: usize) -> Pooling<'_> {
        let ScaledMap { bins: [rows, columns], padded, .. } = &self.maps[scale];
        Pooling { rows, columns, full: self.maps[0].padded, small: *padded }
    }

    /// The same for maps without margins.
    pub(super) fn bare_pooling(&self, scale: usize) -> Pooling<'_> {
        let (full, small) = (self.maps[0].bare, self.maps[scale].bare);
        Pooling { full, small, ..self.pooling(scale) }
    }

    /// How one scale's p_s becomes its columns of the features.
    pub(super) fn resizing(&self, scale: usize) -> Resizing<'_> {
        let ScaledMap { samples: [rows, columns], bare, .. } = &self.maps[scale];
        Resizing {
            rows,
            columns,
            small: *bare,
            grouping: self.grouping,
            stride: self.shape.features(),
            column: scale * self.shape.half(),
        }
    }
}

impl Scratch {
    fn new(plan: &Plan) -> Self {
        let shape = &plan.shape;
        let groups = plan.grouping.per_half();
        let scale = |map: &ScaledMap| ScaleScratch {
            input: vec![Group::ZERO; 2 * groups * map.padded.len()],
            convolved: vec![Group::ZERO; 2 * groups * map.bare.len()],
            gradient: Vec::new(),
        };
        Self {
            hidden: vec![0.0; plan.positions() * shape.inner()],
            scales: plan.maps.iter().map(scale).collect(),
            gated: vec![Group::ZERO; groups * plan.positions()],
            row: vec![Group::ZERO; plan.width],
            bias: vec![0.0; shape.channels()],
            features: vec![0.0; plan.positions() * shape.features()],
            output: Vec::new(),
            taps: vec![Group::ZERO; shape.kernel_size() * shape.kernel_size()],
        }
    }

    fn extend_for_backward(&mut self, plan: &Plan) {
        self.output.resize(plan.positions() * plan.shape.channels(), 0.0);
        for scale in &mut self.scales {
            scale.gradient.resize(scale.input.len(), Group::ZERO);
        }
    }
}
