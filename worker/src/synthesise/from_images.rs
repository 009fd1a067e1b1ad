//! Latents that the teacher's VAE encodes.

use deltaconv_proto::buckets::{self, Size};
use deltaconv_proto::code::Code;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1;

use super::{Latent, Made, check_planned, empty_prompt, picture};
use crate::task::{Context, Error};

/// Encodes the images of `range`, each at the job's size that is nearest to its aspect ratio. Each has a prompt of its own,
/// its caption, with its own number.
pub(super) fn make(context: &Context, images: &v1::Images, range: &v1::SampleRange) -> Result<Made, Error> {
    let numbers = range.start as usize..range.end as usize;
    context.report(|progress| progress.steps = numbers.len() as u64);
    let index = context.models.images(context, images)?;
    check_planned(context, &images.url, &index.digest)?;
    // The plan counted the images of the same index.
    let of_range = index.images.get(numbers.clone()).ok_or(Error::Incomplete("images"))?;
    let captions: Vec<String> = of_range.iter().map(|image| image.caption.clone()).collect();
    let embeddings = context.models.text(context)?.embed(&captions)?;

    let teacher = context.models.teacher(context)?;
    let objects = Objects::open(&images.url)?;
    let sizes: Vec<Size> = buckets::of_job(&context.plan).iter().map(|bucket| bucket.picture).collect();
    let mut latents = Vec::new();
    for image in of_range {
        context.check_stop()?;
        let bytes = context.wait(objects.get_range(&image.key, image.start, image.end))?;
        let (bucket, tensor) = picture::read(&bytes, &sizes).map_err(|reason| {
            let what = format!("{}/{} from byte {} on", images.url, image.key, image.start);
            let reason = format!("it can't be read as an image ({reason}); repair or remove it");
            Error::Unexpected { what, reason, code: Code::Images }
        })?;
        let numbers = teacher.encode(&tensor)?.flatten_all()?.to_vec1::<f32>()?;
        latents.push(Latent { bucket, numbers });
        context.report(|progress| progress.step += 1);
    }
    let of_latent: Vec<usize> = numbers.collect();
    let prompts = of_latent.iter().copied().chain([empty_prompt(&context.plan)]).collect();
    Ok(Made { latents, of_latent, prompts, embeddings })
}
