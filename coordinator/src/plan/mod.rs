//! What a job will do, from its spec, the teacher's configuration, and the headers of the teacher's and the data's
//! files. No weight and no latent is read.

mod bytes;
pub mod cost;
pub(crate) mod data;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
pub(crate) mod header;
pub mod inspect;
mod kernel_size;
mod layers;
mod output;
mod spec;
mod tasks;
pub(crate) mod teacher;
#[cfg(test)]
mod tests;

use deltaconv_proto::teacher::Teacher;
use deltaconv_proto::v1;
use prost::Message;

pub use error::Error;
pub use output::{check_output, claim_output};
pub use tasks::{capture_ranges, evaluation_parts};

use spec::{at_most, invalid};

/// A job is stored as one value of less than 64 KiB, and is sent with every task.
const MAX_JOB_BYTES: usize = 48 << 10;

/// Plans a job, and finds whatever would make it fail later.
///
/// # Errors
/// The first thing that is wrong with the spec, the teacher or the data, with its value and what to do.
pub async fn plan(spec: &v1::JobSpec) -> Result<v1::JobPlan, Error> {
    let checked = spec::check(spec)?;
    let teacher = teacher::read(&checked.teacher_folder).await?;
    check_channels(&teacher.teacher, checked.teacher_folder.url())?;
    check_conditions(&teacher.teacher, checked.teacher_folder.url(), teacher.denoiser.config)?;
    let data =
        data::read(&checked.data_folder, teacher.teacher.latent_channels(), teacher.teacher.text_channels()).await?;

    if checked.data.held_out_latents as usize >= data.latents {
        let expected =
            format!("less than the {} latents of {}, or none is left to train on", data.latents, data_url(spec));
        return Err(invalid("data.held_out_latents", checked.data.held_out_latents, expected));
    }
    let without_empty = data.prompts - 1;
    if checked.evaluation.prompts as usize > without_empty {
        let expected = at_most("the number of prompts without the empty one", without_empty);
        return Err(invalid("evaluation.prompts", checked.evaluation.prompts, expected));
    }
    let timesteps = teacher.scheduler.num_train_timesteps;
    if checked.evaluation.ddim_steps as usize > timesteps {
        let expected = at_most("the scheduler's num_train_timesteps", timesteps);
        return Err(invalid("evaluation.ddim_steps", checked.evaluation.ddim_steps, expected));
    }

    let at_config = |source| Error::teacher(checked.teacher_folder.url(), teacher.denoiser.config, source);
    let found = teacher.teacher.layers(data.height, data.width).map_err(at_config)?;
    if found.is_empty() {
        return Err(Error::NoLayers { url: checked.teacher_folder.url().to_owned() });
    }
    let layers = layers::plan(&teacher.teacher, &found, checked.recipe)?;

    let plan = v1::JobPlan {
        teacher_class: teacher.teacher.class().to_owned(),
        denoiser_folder: teacher.denoiser.folder.to_owned(),
        header_digest: teacher.weights.digest.clone(),
        latent_channels: data.channels as u32,
        latent_height: data.height as u32,
        latent_width: data.width as u32,
        latents: data.latents as u32,
        prompts: data.prompts as u32,
        capture_bytes: bytes::capture(spec, &layers),
        checkpoint_bytes: bytes::checkpoint(&layers),
        output_bytes: bytes::output(&teacher.weights.header, &layers),
        capture_tasks: capture_ranges(spec).len() as u32,
        distill_tasks: layers.len() as u32,
        evaluate_tasks: evaluation_parts(spec).len() as u32,
        layers,
    };
    let job_bytes = spec.encoded_len() + plan.encoded_len();
    if job_bytes > MAX_JOB_BYTES {
        let expected = format!("with its plan it takes {job_bytes} bytes, and {MAX_JOB_BYTES} are the most");
        return Err(invalid("the job", format!("{} layers", plan.layers.len()), expected));
    }
    Ok(plan)
}

/// A job's data has embeddings of prompts, and nothing else that a model may be conditioned on.
fn check_conditions(teacher: &Teacher, url: &str, config: &'static str) -> Result<(), Error> {
    match teacher {
        Teacher::UNet(unet) if unet.added.is_some() => {
            let source = deltaconv_proto::teacher::Error::Unsupported {
                field: "addition_embed_type",
                value: "\"text_time\"".to_owned(),
                supported: "null, until data sets have pooled text embeddings; such models can be inspected",
            };
            Err(Error::teacher(url, config, source))
        }
        _ => Ok(()),
    }
}

/// A teacher predicts the noise, and may predict its variance behind it.
fn check_channels(teacher: &Teacher, url: &str) -> Result<(), Error> {
    let (input, output) = (teacher.latent_channels(), teacher.out_channels());
    let with_variance = matches!(teacher, Teacher::PixArt(_)) && output == 2 * input;
    if input == output || with_variance {
        return Ok(());
    }
    Err(Error::OutputChannels { url: url.to_owned(), input, output })
}

fn data_url(spec: &v1::JobSpec) -> &str {
    spec.data.as_ref().map_or("", |data| &data.url)
}
