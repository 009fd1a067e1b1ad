//! What a job will do, from its spec, the teacher's configuration, and the headers of the teacher's and the data's
//! files. No weight and no latent is read.

mod buckets;
mod bytes;
pub(crate) mod copied;
pub mod cost;
pub(crate) mod data;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
pub mod inspect;
mod kernel_size;
mod layers;
mod output;
mod spec;
mod synthesis;
mod tasks;
pub(crate) mod teacher;
#[cfg(test)]
mod tests;

use deltaconv_proto::buckets::Size;
use deltaconv_proto::pipeline::{self, Part};
use deltaconv_proto::teacher::{Teacher, VaeConfig};
use deltaconv_proto::v1;
use prost::Message;

pub use error::Error;
pub use layers::{keeping, trained_in, widened};
pub use output::{check_output, claim_output};
pub use tasks::{capture_ranges, earlier_students, evaluation_parts, is_mixed_in, synthesis_ranges};

pub(crate) use spec::RESULTS;
pub(crate) use tasks::count_tasks;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {data::read as read_data, output::check_prefix, spec::check as check_spec};

use spec::{Source, at_most, invalid};

/// A job is stored as one value of less than 64 KiB, and is sent with every task.
const MAX_JOB_BYTES: usize = 48 << 10;

/// Plans a job, and finds whatever would make it fail later.
///
/// # Errors
/// The first thing that is wrong with the spec, the teacher or the data, with its value and what to do.
pub async fn plan(spec: &v1::JobSpec) -> Result<v1::JobPlan, Error> {
    let checked = spec::check(spec)?;
    let teacher = teacher::read(&checked.teacher_folder).await?;
    // Assembly copies what lies beside the denoiser, and would find out days later that a server gives no listing.
    checked.teacher_folder.list(1).await?;
    check_channels(&teacher.teacher, checked.teacher_folder.url())?;
    let vae = pipeline::read_vae(&checked.teacher_folder, &teacher.teacher).await?;
    let factor = picture_factor(&teacher.teacher, vae.as_ref(), checked.teacher_folder.url())?;
    let data = match checked.source {
        Source::Ready(folder) => data::read(&folder, &teacher.teacher).await?,
        Source::Synthesis(synthesis) => {
            synthesis::of_prompts(synthesis, &checked.teacher_folder, &teacher.teacher, factor).await?
        }
        Source::Images(_, images) => {
            synthesis::of_images(images, &checked.teacher_folder, &teacher.teacher, factor).await?
        }
    };
    let data_url = data_url(checked.data);

    if checked.data.held_out_latents as usize >= data.latents {
        let expected = format!("less than the {} latents of {data_url}, or none is left to train on", data.latents);
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
    let layers = |(height, width): &Size| teacher.teacher.layers(*height, *width).map_err(at_config);
    let found = data.sizes.iter().map(layers).collect::<Result<Vec<_>, Error>>()?;
    if found.iter().any(Vec::is_empty) {
        return Err(Error::NoLayers { url: checked.teacher_folder.url().to_owned() });
    }
    let layers::Planned { layers, kept } = layers::plan(&teacher.teacher, &found, checked.recipe)?;
    let widest = layers::widest(checked.recipe, &layers);

    let first = bucket(data.sizes[0], factor);
    let buckets = data.sizes.iter().map(|size| bucket(*size, factor));
    let plan = v1::JobPlan {
        teacher_class: teacher.teacher.class().to_owned(),
        denoiser_folder: teacher.denoiser.folder.to_owned(),
        header_digest: teacher.weights.digest.clone(),
        latent_channels: data.channels as u32,
        latent_height: first.latent_height,
        latent_width: first.latent_width,
        latents: data.latents as u32,
        prompts: data.prompts as u32,
        capture_bytes: bytes::capture(spec, &layers),
        checkpoint_bytes: bytes::checkpoint(spec, &widest),
        output_bytes: bytes::output(&teacher.weights, &widest),
        capture_tasks: capture_ranges(spec).len() as u32,
        distill_tasks: layers.len() as u32,
        evaluate_tasks: evaluation_parts(spec).len() as u32,
        layers,
        kept,
        synthesise_tasks: 0,
        synthesise_bytes: data.bytes_to_write,
        prompts_digest: data.prompts_digest.clone(),
        picture_height: first.picture_height,
        picture_width: first.picture_width,
        buckets: if data.sizes.len() > 1 { buckets.collect() } else { Vec::new() },
        stages: Vec::new(),
        stored_bytes: 0,
    };
    let plan = v1::JobPlan { synthesise_tasks: synthesis_ranges(spec, &plan).len() as u32, ..plan };
    let read = bytes::Read {
        denoiser: &teacher.weights,
        vae: vae.as_ref().map(|vae| &vae.weights),
        data: &data,
        copied: copied::bytes(&checked.teacher_folder, teacher.denoiser).await?,
    };
    let stages = bytes::stages(spec, &plan, &read);
    bytes::check_storage(spec, &stages)?;
    let plan = v1::JobPlan { stored_bytes: bytes::stored(&stages), stages, ..plan };
    let job_bytes = spec.encoded_len() + plan.encoded_len();
    if job_bytes > MAX_JOB_BYTES {
        let expected = format!("with its plan it takes {job_bytes} bytes, and {MAX_JOB_BYTES} are the most");
        return Err(invalid("the job", format!("{} layers", plan.layers.len()), expected));
    }
    Ok(plan)
}

/// Latents of a size, and their pictures.
fn bucket((height, width): Size, factor: usize) -> v1::Bucket {
    let [latent_height, latent_width] = [height, width].map(|side| side as u32);
    let [picture_height, picture_width] = [height, width].map(|side| (side * factor) as u32);
    v1::Bucket { latent_height, latent_width, picture_height, picture_width }
}

/// Channels of latents that are the pictures themselves.
const PIXELS: usize = 3;

/// Pixels of a picture for one of a latent, in each direction.
fn picture_factor(teacher: &Teacher, vae: Option<&Part<VaeConfig>>, url: &str) -> Result<usize, Error> {
    match vae {
        Some(vae) => Ok(vae.config.factor()),
        None if teacher.latent_channels() == PIXELS => Ok(1),
        None => Err(Error::NoVae { url: url.to_owned(), channels: teacher.latent_channels() }),
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

/// Where the latents, or what they are made of, lie.
fn data_url(data: &v1::Data) -> &str {
    match (&data.synthesis, &data.images) {
        (Some(synthesis), _) => &synthesis.prompts_url,
        (None, Some(images)) => &images.url,
        (None, None) => &data.url,
    }
}
