//! The steps that jobs take.

use deltaconv_proto::keys;

use super::Kind;

/// A job's steps, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Making the latents, of jobs whose data has none: the teacher samples them, or its VAE encodes images.
    Synthesise,
    /// Recording what goes into and out of each layer.
    Capture,
    /// Training the blocks, each by itself.
    Distill,
    /// Training them together.
    Finetune,
    /// Putting blocks and the frozen rest together.
    Assemble,
    /// Comparing teacher and student, and the report.
    Evaluate,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Synthesise, Self::Capture, Self::Distill, Self::Finetune, Self::Assemble, Self::Evaluate];

    /// The stage in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synthesise => "synthesise",
            Self::Capture => "capture",
            Self::Distill => "distill",
            Self::Finetune => keys::FINETUNE,
            Self::Assemble => "assemble",
            Self::Evaluate => "evaluate",
        }
    }
}

/// What a job's recipe has it take, beside what every job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// Rounds after the first one.
    pub(super) rounds: u32,
    /// Whether blocks are trained together.
    pub(super) finetune: bool,
}

/// A stage, and in which round: where a job stands. In the order in which a job takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The stage.
    pub stage: Stage,
    /// Of capture and distill; 0 of the others.
    pub round: u32,
}

impl Step {
    /// The step that a task of this kind belongs to.
    pub fn of(kind: &Kind) -> Self {
        let (stage, round) = match kind {
            Kind::Synthesise { .. } => (Stage::Synthesise, 0),
            Kind::Capture { round, .. } => (Stage::Capture, *round),
            Kind::Distill { round, .. } => (Stage::Distill, *round),
            Kind::Finetune => (Stage::Finetune, 0),
            Kind::Evaluate(_) => (Stage::Evaluate, 0),
        };
        Self { stage, round }
    }

    /// All that a job of this course could take, in order.
    pub(super) fn all(Course { rounds, finetune }: Course) -> impl Iterator<Item = Self> {
        let once = |stage| Self { stage, round: 0 };
        let round = |round| [Stage::Capture, Stage::Distill].map(|stage| Self { stage, round });
        let ends = [Stage::Assemble, Stage::Evaluate].map(once);
        let finetune = finetune.then(|| once(Stage::Finetune));
        std::iter::once(once(Stage::Synthesise)).chain((0..=rounds).flat_map(round)).chain(finetune).chain(ends)
    }

    /// Its position in [`Self::all`].
    pub(super) fn position(self, Course { rounds, finetune }: Course) -> usize {
        let (round, rounds_end) = (self.round as usize, 3 + 2 * rounds as usize);
        match self.stage {
            Stage::Synthesise => 0,
            Stage::Capture => 1 + 2 * round,
            Stage::Distill => 2 + 2 * round,
            Stage::Finetune => rounds_end,
            Stage::Assemble => rounds_end + usize::from(finetune),
            Stage::Evaluate => rounds_end + usize::from(finetune) + 1,
        }
    }
}
