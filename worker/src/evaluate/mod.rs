//! Compares teacher and student on what training has not seen, one part at a time.
//!
//! The result is a safetensors object. Of noise: `timestep` [n] i64, and `energy`, `student_error`, `removed_error` [n]
//! f64, sums of squares over one sample's predicted noise; bucket by bucket; and where the task names earlier students
//! `round_error` [r, n], their errors. Of some of these samples, m, and of the l layers that
//! were replaced, in the plan's order: `layer_timestep` [m] i64, `layer_energy` [m] f64, and [l, m] f64 `alone_error`, of the
//! teacher with only this layer replaced, `stream_energy` and `stream_error`, of the residual stream before it. Of b batches
//! `teacher_seconds` and `student_seconds` [b] f64, how long a pass took over the batch's samples. Of pictures:
//! `teacher`, `student`, `removed` [n, 3, H, W] f32 and `prompt` [n] i64; and of earlier students `rounds` [r, n, 3, H, W] f32.

mod alone;
mod held_out;
mod layers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use deltaconv_proto::draw::{self, Draw, Purpose, Sample};
use deltaconv_proto::safetensors::{Dtype, serialize_header};
use deltaconv_proto::{keys, v1};

use crate::blocks::{Blocks, InPlace};
use crate::capture::Inputs;
use crate::data::Data;
use crate::models::Teacher;
use crate::stoppable::{Stoppable, expect_passes};
use crate::student::Student;
use crate::task::{Context, Error};
use crate::teacher::{Denoiser, Guidance, Original, Removed, SelfAttention, Solver, Steps};

pub(crate) use alone::error as error_alone;
pub(crate) use held_out::HeldOut;
use layers::ByLayer;

/// Samples that go through a model at a time.
const BATCH: usize = 8;
/// Models that are compared: teacher, student, and the teacher without attention.
const MODELS: usize = 3;
/// Of the pictures: the job's first.
const BUCKET: usize = 0;

/// Evaluates the task's part and writes what was found.
pub(crate) fn run(context: &Context, task: &v1::EvaluateTask) -> Result<v1::Done, Error> {
    let part = task.part.ok_or(Error::Incomplete("part"))?;
    let models = Evaluated {
        teacher: context.models.teacher(context)?,
        student: context.models.student(context, &task.output)?,
        rounds: context.models.blocks(context, &task.rounds)?,
        data: context.models.data(context)?,
    };
    let (samples, bytes) = match part {
        v1::evaluate_task::Part::Noise(range) => (range.end - range.start, models.noise(context, &range)?),
        v1::evaluate_task::Part::Pictures(range) => {
            let steps = context.job.evaluation.as_ref().map_or(0, |evaluation| evaluation.ddim_steps);
            ((range.end - range.start) * steps, models.pictures(context, &range)?)
        }
    };
    context.check_stop()?;
    let key = keys::evaluation(&context.task, &context.attempt);
    let part = context.wait(context.objects.put(&key, bytes))?;
    Ok(v1::Done {
        busy_seconds: 0.0,
        samples: u64::from(samples),
        output: Some(v1::done::Output::Evaluate(v1::EvaluateOutput { part: Some(part) })),
    })
}

/// What is compared, and on what.
struct Evaluated {
    teacher: Arc<Teacher>,
    student: Arc<Student>,
    /// Of the students before it.
    rounds: Arc<Vec<Blocks>>,
    data: Arc<Data>,
}

impl Evaluated {
    fn noise(&self, context: &Context, range: &v1::SampleRange) -> Result<Vec<u8>, Error> {
        let timesteps = self.teacher.sampler.alphas_cumprod().len();
        let draw = Draw::new(&context.job, self.data.latent_lens(), timesteps);
        let numbers = range.start as usize..range.end as usize;
        let by_bucket = self.data.by_bucket(numbers, |i| draw.latent_of_evaluation(i));
        let layers = layers::replaced(&context.plan, self.student.blocks());
        let one_in = layers::one_in(layers.len());
        let looked_at = |i: &usize| !layers.is_empty() && i.is_multiple_of(one_in);
        let some: Vec<Vec<usize>> =
            by_bucket.iter().map(|numbers| numbers.iter().copied().filter(looked_at).collect()).collect();
        let batches = |numbers: &[Vec<usize>]| numbers.iter().map(|of| of.len().div_ceil(BATCH)).sum::<usize>();
        let models = MODELS + self.rounds.len();
        expect_passes(context, models * batches(&by_bucket) + layers::passes(layers.len()) * batches(&some));

        let mut found = Noise::new(self.rounds.len(), layers.len());
        for batch in by_bucket.iter().flat_map(|numbers| numbers.chunks(BATCH)) {
            let batch: Vec<Sample> = batch.iter().map(|i| draw.evaluation(*i)).collect();
            let inputs = &Inputs::new(&self.teacher, &self.data, &batch)?;
            let (teacher, seconds) = timed(inputs, || predict(context, &self.teacher.denoiser, inputs, &mut Original))?;
            found.teacher_seconds.push(seconds / batch.len() as f64);
            let mut attention = self.student.attention();
            let (student, seconds) =
                timed(inputs, || predict(context, &self.student.denoiser, inputs, &mut attention))?;
            found.student_seconds.push(seconds / batch.len() as f64);
            let removed = predict(context, &self.teacher.denoiser, inputs, &mut removed(context))?;
            found.timestep.extend(batch.iter().map(|sample| sample.timestep as i64));
            found.energy.extend(squares(&teacher, None, batch.len()));
            found.student_error.extend(squares(&student, Some(&teacher), batch.len()));
            found.removed_error.extend(squares(&removed, Some(&teacher), batch.len()));
            for (errors, blocks) in found.round_error.iter_mut().zip(self.rounds.iter()) {
                let round = predict(context, &self.teacher.denoiser, inputs, &mut InPlace(blocks))?;
                errors.extend(squares(&round, Some(&teacher), batch.len()));
            }
        }
        for batch in some.iter().flat_map(|numbers| numbers.chunks(BATCH)) {
            let batch: Vec<Sample> = batch.iter().map(|i| draw.evaluation(*i)).collect();
            let inputs = Inputs::new(&self.teacher, &self.data, &batch)?;
            found.by_layer.add(context, self, &layers, &inputs, &batch)?;
        }
        found.encode()
    }

    fn pictures(&self, context: &Context, range: &v1::SampleRange) -> Result<Vec<u8>, Error> {
        let evaluation = context.job.evaluation.ok_or(Error::Incomplete("evaluation"))?;
        let seed = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?.seed;
        let steps = Steps { solver: Solver::Ddim, count: evaluation.ddim_steps as usize };
        let numbers: Vec<usize> = (range.start as usize..range.end as usize).collect();
        let prompts: Vec<usize> =
            numbers.iter().map(|i| spread(*i, evaluation.prompts as usize, self.data.empty_prompt())).collect();
        let noise = |i: &usize| {
            let mut rng = draw::generator(seed, Purpose::EvaluatePictures, *i as u64);
            draw::normal(&mut rng, self.data.latent_len(BUCKET))
        };
        let noise = self.data.batch(BUCKET, numbers.iter().map(noise).collect())?;
        let conditions = self.data.conditions(BUCKET, &prompts)?;
        let negative = self.data.conditions(BUCKET, &[self.data.empty_prompt()])?;
        let guidance = Guidance { scale: evaluation.guidance, negative };

        expect_passes(context, (MODELS + self.rounds.len()) * steps.count);
        let sample = |model: &Denoiser, attention: &mut dyn SelfAttention| -> Result<Tensor, Error> {
            let mut stoppable = Stoppable { context, attention };
            let sampler = &self.teacher.sampler;
            let latents = sampler.sample(model, &noise, &conditions, Some(&guidance), steps, &mut stoppable);
            context.check_stop()?;
            self.teacher.decode(&latents?)
        };
        let teacher = sample(&self.teacher.denoiser, &mut Original)?;
        let student = sample(&self.student.denoiser, &mut self.student.attention())?;
        let removed = sample(&self.teacher.denoiser, &mut removed(context))?;
        let mut pictures = vec![("teacher", teacher), ("student", student), ("removed", removed)];
        let of_round = |blocks| sample(&self.teacher.denoiser, &mut InPlace(blocks));
        let rounds: Vec<Tensor> = self.rounds.iter().map(of_round).collect::<Result<_, Error>>()?;
        if !rounds.is_empty() {
            pictures.push(("rounds", Tensor::stack(&rounds, 0)?));
        }
        encode_pictures(&pictures, &prompts)
    }
}

/// Prompt `i` of the `wanted` ones that are spread over all `available`.
fn spread(i: usize, wanted: usize, available: usize) -> usize {
    i * available / wanted.max(1)
}

/// The teacher without the attention that the job replaces.
fn removed(context: &Context) -> Removed {
    Removed { kept: context.plan.kept.iter().cloned().collect() }
}

/// The noise that a model predicts for a batch, flat.
fn predict(
    context: &Context,
    model: &Denoiser,
    inputs: &Inputs,
    attention: &mut dyn SelfAttention,
) -> Result<Vec<f32>, Error> {
    let mut stoppable = Stoppable { context, attention };
    let noise = model.predict(&inputs.noised, &inputs.timesteps, &inputs.conditions, &mut stoppable);
    context.check_stop()?;
    Ok(noise?.flatten_all()?.to_vec1()?)
}

/// What a pass gives, and the seconds that it took, without what was still to be done for its inputs.
fn timed<T>(inputs: &Inputs, pass: impl FnOnce() -> Result<T, Error>) -> Result<(T, f64), Error> {
    inputs.noised.device().synchronize()?;
    let began = Instant::now();
    let given = pass()?;
    Ok((given, began.elapsed().as_secs_f64()))
}

/// Sums of squares over each of a batch's `samples`: of the noise, or of its difference from what is expected.
fn squares(noise: &[f32], expected: Option<&[f32]>, samples: usize) -> Vec<f64> {
    let sum = |row: usize| {
        let row = row * noise.len() / samples..(row + 1) * noise.len() / samples;
        let square = |i: usize| f64::from(noise[i] - expected.map_or(0.0, |expected| expected[i])).powi(2);
        row.map(square).sum()
    };
    (0..samples).map(sum).collect()
}

struct Noise {
    timestep: Vec<i64>,
    energy: Vec<f64>,
    student_error: Vec<f64>,
    removed_error: Vec<f64>,
    round_error: Vec<Vec<f64>>,
    by_layer: ByLayer,
    /// By batch, per sample.
    teacher_seconds: Vec<f64>,
    student_seconds: Vec<f64>,
}

impl Noise {
    fn new(rounds: usize, layers: usize) -> Self {
        Self {
            timestep: Vec::new(),
            energy: Vec::new(),
            student_error: Vec::new(),
            removed_error: Vec::new(),
            round_error: vec![Vec::new(); rounds],
            by_layer: ByLayer::new(layers),
            teacher_seconds: Vec::new(),
            student_seconds: Vec::new(),
        }
    }

    fn encode(self) -> Result<Vec<u8>, Error> {
        let shape = [self.timestep.len()];
        let doubles =
            [("energy", self.energy), ("student_error", self.student_error), ("removed_error", self.removed_error)];
        let header = doubles.iter().map(|(name, _)| (*name, Dtype::F64, &shape[..]));
        let by_round = [self.round_error.len(), shape[0]];
        let rounds = (by_round[0] > 0).then_some(("round_error", Dtype::F64, &by_round[..]));
        let by_layer = self.by_layer.tensors();
        let layers = by_layer.iter().map(|(name, dtype, shape, _)| (*name, *dtype, &shape[..]));
        let seconds = [("teacher_seconds", self.teacher_seconds), ("student_seconds", self.student_seconds)];
        let batches = [seconds[0].1.len()];
        let timed = seconds.iter().map(|(name, _)| (*name, Dtype::F64, &batches[..]));
        let of_samples = std::iter::once(("timestep", Dtype::I64, &shape[..])).chain(header).chain(rounds);
        let tensors = of_samples.chain(layers).chain(timed);
        let mut bytes = serialize_header(tensors, &BTreeMap::new())?;
        bytes.extend(self.timestep.iter().flat_map(|value| value.to_le_bytes()));
        for values in doubles.iter().map(|(_, values)| values).chain(&self.round_error) {
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes.extend(by_layer.iter().flat_map(|(.., bytes)| bytes));
        bytes.extend(seconds.iter().flat_map(|(_, values)| values).flat_map(|value| value.to_le_bytes()));
        Ok(bytes)
    }
}

fn encode_pictures(pictures: &[(&str, Tensor)], prompts: &[usize]) -> Result<Vec<u8>, Error> {
    let count = [prompts.len()];
    let shapes: Vec<&[usize]> = pictures.iter().map(|(_, tensor)| tensor.dims()).collect();
    let floats = pictures.iter().zip(&shapes).map(|((name, _), shape)| (*name, Dtype::F32, *shape));
    let tensors = std::iter::once(("prompt", Dtype::I64, &count[..])).chain(floats);
    let mut bytes = serialize_header(tensors, &BTreeMap::new())?;
    bytes.extend(prompts.iter().flat_map(|prompt| (*prompt as i64).to_le_bytes()));
    for (_, tensor) in pictures {
        bytes.extend(tensor.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(bytes)
}
