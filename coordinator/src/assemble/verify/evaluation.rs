//! A part of the evaluation: of the kind that was asked for, with as many samples and the layers that were replaced, and
//! pictures of a possible size.

use deltaconv_proto::keys;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1::{EvaluateOutput, EvaluateTask, JobPlan, SampleRange, evaluate_task};

use super::{Error, Expectation, check_ref, off_thread};
use crate::observe::report::Part;

const MAX_HEADER_BYTES: u64 = 64 << 10;
/// A pixel of the latent becomes at most this many pixels of a picture in each direction: autoencoders have 8.
const MAX_UPSCALING: u64 = 8;
/// No noise schedule has more timesteps.
const MAX_TIMESTEPS: i64 = 100_000;

pub(super) async fn verify(
    objects: &Objects,
    output: &EvaluateOutput,
    task: &EvaluateTask,
    expectation: &Expectation<'_>,
) -> Result<(), Error> {
    let asked = task.part.as_ref().ok_or(Error::Task("part"))?;
    let key = keys::evaluation(expectation.task, expectation.attempt);
    let object = output.part.as_ref().ok_or_else(|| Error::NoObject { expected: key.clone() })?;
    let (least, most) = tensor_bytes(asked, task.rounds.len(), expectation.plan);
    check_ref(object, &key, least, (most - least).saturating_add(MAX_HEADER_BYTES))?;
    let bytes = objects.get_verified(object).await?;
    let part = off_thread(&key, move || Part::parse(&bytes))
        .await?
        .map_err(|source| Error::Part { key: key.clone(), source })?;
    check(&part, (asked, task.rounds.len()), expectation.plan, &key)
}

/// The least and the most bytes that the tensors of such a part take.
fn tensor_bytes(asked: &evaluate_task::Part, rounds: usize, plan: &JobPlan) -> (u64, u64) {
    match asked {
        evaluate_task::Part::Noise(range) => {
            let numbers = 4 + rounds as u64;
            // Of the layers and of the time: two numbers and three a layer, and two, of no more samples and batches than that.
            let more = (2 + 3 * plan.layers.len() as u64) + 2;
            let n = samples(range) as u64 * 8;
            (n * numbers, n * (numbers + more))
        }
        evaluate_task::Part::Pictures(range) => {
            let models = 3 + rounds as u64;
            let pixels = u64::from(plan.latent_height).saturating_mul(plan.latent_width.into());
            let of_each =
                |upscaling: u64| pixels.saturating_mul(upscaling * upscaling * models * 3 * 4).saturating_add(8);
            let n = samples(range) as u64;
            (n.saturating_mul(of_each(1)), n.saturating_mul(of_each(MAX_UPSCALING)))
        }
    }
}

fn samples(range: &SampleRange) -> usize {
    range.end.saturating_sub(range.start) as usize
}

fn check(part: &Part, (asked, rounds): (&evaluate_task::Part, usize), plan: &JobPlan, key: &str) -> Result<(), Error> {
    let value =
        |what: &str, found: String, expected: String| Error::Value { what: format!("{key}: {what}"), found, expected };
    match (part, asked) {
        (Part::Noise(noise), evaluate_task::Part::Noise(range)) => {
            if noise.timestep.len() != samples(range) {
                let expected = samples(range).to_string();
                return Err(value("number of samples", noise.timestep.len().to_string(), expected));
            }
            if noise.round_error.len() != rounds {
                return Err(value("number of rounds", noise.round_error.len().to_string(), rounds.to_string()));
            }
            let (layers, rows) = (plan.layers.len(), noise.by_layer.alone_error.len());
            if rows != layers && !noise.by_layer.timestep.is_empty() {
                return Err(value("number of layers", rows.to_string(), layers.to_string()));
            }
            let timesteps = noise.timestep.iter().chain(&noise.by_layer.timestep);
            if let Some(timestep) = timesteps.into_iter().find(|t| !(0..MAX_TIMESTEPS).contains(*t)) {
                return Err(value("timestep", timestep.to_string(), format!("0 to {}", MAX_TIMESTEPS - 1)));
            }
            Ok(())
        }
        (Part::Pictures(pictures), evaluate_task::Part::Pictures(range)) => {
            if pictures.prompt.len() != samples(range) {
                let expected = samples(range).to_string();
                return Err(value("number of pictures", pictures.prompt.len().to_string(), expected));
            }
            if pictures.rounds.len() != rounds {
                return Err(value("number of rounds", pictures.rounds.len().to_string(), rounds.to_string()));
            }
            let prompts = 0..i64::from(plan.prompts);
            if let Some(prompt) = pictures.prompt.iter().find(|prompt| !prompts.contains(*prompt)) {
                return Err(value("prompt", prompt.to_string(), format!("0 to {}", prompts.end - 1)));
            }
            let (h, w) = (plan.latent_height as usize, plan.latent_width as usize);
            let fits = |upscaling: usize| (pictures.height, pictures.width) == (h * upscaling, w * upscaling);
            if !(1..=MAX_UPSCALING as usize).any(fits) {
                let expected = format!("{h}×{w}, or up to {MAX_UPSCALING} times that");
                return Err(value("size of pictures", format!("{}×{}", pictures.height, pictures.width), expected));
            }
            Ok(())
        }
        (part, _) => {
            let (noise, pictures) = ("samples of noise", "pictures");
            let (found, expected) = match part {
                Part::Noise(_) => (noise, pictures),
                Part::Pictures(_) => (pictures, noise),
            };
            Err(value("the part", found.to_owned(), expected.to_owned()))
        }
    }
}
