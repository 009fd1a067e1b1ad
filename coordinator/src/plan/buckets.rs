//! The sizes of a job's latents: one, or a list of buckets, as asked for or as they follow from the teacher's own size.

use deltaconv_proto::buckets::{Size, same_ratio};
use deltaconv_proto::teacher::Teacher;
use deltaconv_proto::v1::Buckets;

use super::Error;
use super::spec::invalid;

/// Pictures beyond this are nobody's training size.
const MAX_SIDE: usize = 16_384;
/// Each has its own map in every layer's plan, and waits for a batch of its own.
const MAX_BUCKETS: usize = 16;
/// Of automatic buckets, in pixels, and the side that it goes with: what SDXL was trained with (arXiv 2307.01952, appendix
/// I). Sizes of about twice that side are twice as far apart, so that they are as many.
const STEP: usize = 64;
const NATIVE: usize = 1024;
/// Below, steps of 64 pixels leave hardly any ratio.
const LEAST_AUTOMATIC_SIDE: usize = 256;

/// Sizes as a table of the job file asks for them.
pub(super) struct Asked<'a> {
    /// `data.synthesis` or `data.images`.
    pub(super) table: &'static str,
    /// `size` in pixels, or (0, 0) where there is none.
    pub(super) size: (u32, u32),
    pub(super) buckets: Option<&'a Buckets>,
    /// Whether samples go to buckets by aspect ratio, so that no two may have the same.
    pub(super) by_ratio: bool,
}

impl Asked<'_> {
    /// Heights and widths of the latents: at least one, the first of which stands for the job where one must.
    pub(super) fn latent_sizes(&self, teacher: &Teacher, factor: usize) -> Result<Vec<Size>, Error> {
        match self.buckets {
            None if self.size == (0, 0) => {
                Ok(vec![self.trained(teacher, "size", "absent", "height and width in pixels")?])
            }
            None => Ok(vec![latent_size(&self.field("size"), pixels(self.size), factor)?]),
            Some(_) if self.size != (0, 0) => {
                let expected = format!("nothing where {} lists the sizes", self.field("buckets"));
                Err(invalid(self.field("size"), shown(pixels(self.size)), expected))
            }
            Some(buckets) if buckets.sizes.is_empty() => self.automatic(teacher, factor),
            Some(buckets) => self.listed(buckets, teacher, factor),
        }
    }

    fn field(&self, name: &str) -> String {
        format!("{}.{name}", self.table)
    }

    /// The latents' size that the teacher was trained at, which the field's value asks for.
    fn trained(&self, teacher: &Teacher, name: &str, value: &str, remedy: &str) -> Result<Size, Error> {
        let expected = format!("{remedy}: the teacher's config.json says none");
        teacher.sample_size().ok_or_else(|| invalid(self.field(name), value, expected))
    }

    fn automatic(&self, teacher: &Teacher, factor: usize) -> Result<Vec<Size>, Error> {
        let refused = |reason: String| invalid(self.field("buckets"), "auto", format!("a list of sizes: {reason}"));
        let (height, width) = self.trained(teacher, "buckets", "auto", "a list of sizes in pixels")?;
        let sizes = automatic((height * factor, width * factor));
        if sizes.len() < 2 {
            let reason = format!("the teacher's {height}×{width} latents are too small for steps of {STEP} pixels");
            return Err(refused(reason));
        }
        let latents = sizes.into_iter().map(|size| bucket(&self.field("buckets"), size, teacher, factor));
        latents.collect::<Result<_, Error>>().map_err(|unfit| refused(unfit.to_string()))
    }

    fn listed(&self, buckets: &Buckets, teacher: &Teacher, factor: usize) -> Result<Vec<Size>, Error> {
        let sizes: Vec<Size> = buckets.sizes.iter().map(|size| pixels((size.height, size.width))).collect();
        if sizes.len() > MAX_BUCKETS {
            let value = format!("{} sizes", sizes.len());
            return Err(invalid(self.field("buckets"), value, format!("at most {MAX_BUCKETS}")));
        }
        let mut latents = Vec::with_capacity(sizes.len());
        for (index, &size) in sizes.iter().enumerate() {
            let name = format!("{}[{index}]", self.field("buckets"));
            let alike = |earlier: &&Size| **earlier == size || self.by_ratio && same_ratio(**earlier, size);
            if let Some(earlier) = sizes[..index].iter().find(alike) {
                let expected = match *earlier == size {
                    true => "each size once".to_owned(),
                    false => format!("another ratio than {}: images go to buckets by their ratio", shown(*earlier)),
                };
                return Err(invalid(name, shown(size), expected));
            }
            latents.push(bucket(&name, size, teacher, factor)?);
        }
        Ok(latents)
    }
}

/// One bucket's latent size, if the teacher takes it.
fn bucket(field: &str, size: Size, teacher: &Teacher, factor: usize) -> Result<Size, Error> {
    let latent = latent_size(field, size, factor)?;
    let unfit = |error| invalid(field, shown(size), format!("a size that the teacher takes ({error})"));
    teacher.layers(latent.0, latent.1).map_err(unfit)?;
    Ok(latent)
}

/// Of pictures of `size` pixels, where a latent's pixel stands for `factor` × `factor`.
fn latent_size(field: &str, size: Size, factor: usize) -> Result<Size, Error> {
    let fits = |side: usize| (1..=MAX_SIDE).contains(&side) && side.is_multiple_of(factor);
    if !fits(size.0) || !fits(size.1) {
        return Err(invalid(field, shown(size), format!("two multiples of {factor}, at most {MAX_SIDE}")));
    }
    Ok((size.0 / factor, size.1 / factor))
}

/// The size itself, and those of about its area whose sides are multiples of the step, from 1:2 to 2:1: for each shorter
/// side the largest longer one that does not exceed the area.
fn automatic((height, width): Size) -> Vec<Size> {
    let area = height * width;
    let side = area.isqrt();
    let mut sizes = vec![(height, width)];
    if side < LEAST_AUTOMATIC_SIDE {
        return sizes;
    }
    let step = ((side + NATIVE / 2) / NATIVE).max(1) * STEP;
    for shorter in (step..side).step_by(step).rev() {
        let longer = area / shorter / step * step;
        if longer > 2 * shorter {
            break;
        }
        if longer > shorter {
            sizes.extend([(shorter, longer), (longer, shorter)].into_iter().filter(|size| *size != (height, width)));
        }
    }
    sizes
}

fn pixels((height, width): (u32, u32)) -> Size {
    (height as usize, width as usize)
}

fn shown((height, width): Size) -> String {
    format!("[{height}, {width}]")
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::v1::PictureSize;

    use super::*;

    /// What 8 pixels to one of its latents make of a list, by PixArt-Σ, whose latents have 128 × 128.
    fn asked(sizes: &[(u32, u32)], by_ratio: bool) -> Result<Vec<Size>, String> {
        let teacher = br#"{"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096, "sample_size": 128}"#;
        let teacher = Teacher::parse(teacher).expect("a teacher");
        let sizes = sizes.iter().map(|(height, width)| PictureSize { height: *height, width: *width });
        let buckets = Buckets { sizes: sizes.collect() };
        let asked = Asked { table: "data.images", size: (0, 0), buckets: Some(&buckets), by_ratio };
        asked.latent_sizes(&teacher, 8).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_are_taken_as_latents_and_refused_by_field_and_value() {
        assert_eq!(asked(&[(1024, 1024), (832, 1216)], true).expect("two"), [(128, 128), (104, 152)]);
        assert_eq!(asked(&[(1024, 1024), (512, 512)], false).expect("two"), [(128, 128), (64, 64)]);
        assert_eq!(asked(&[], true).expect("automatic").len(), 9);
        let refused = |sizes: &[(u32, u32)]| asked(sizes, true).expect_err("refused");
        for (sizes, parts) in [
            (&[(1024, 1024), (1024, 1020)][..], ["data.images.buckets[1] = [1024, 1020]", "two multiples of 8"]),
            (&[(1024, 1024), (1024, 1016)], ["data.images.buckets[1] = [1024, 1016]", "128×127"]),
            (&[(1024, 1024), (1024, 1024)], ["data.images.buckets[1] = [1024, 1024]", "each size once"]),
            (&[(1024, 1024), (512, 512)], ["data.images.buckets[1] = [512, 512]", "another ratio than [1024, 1024]"]),
        ] {
            let message = refused(sizes);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn automatic_buckets_are_those_of_sdxl() {
        let both = |sizes: &[Size]| sizes.iter().flat_map(|(h, w)| [(*h, *w), (*w, *h)]).collect::<Vec<_>>();
        let sdxl = [(960, 1088), (896, 1152), (832, 1216), (768, 1344)];
        assert_eq!(automatic((1024, 1024)), [&[(1024, 1024)][..], &both(&sdxl)].concat());
        assert_eq!(automatic((512, 512)), [&[(512, 512)][..], &both(&[(448, 576), (384, 640)])].concat());
        assert_eq!(
            automatic((2048, 2048)),
            automatic((1024, 1024)).iter().map(|(h, w)| (2 * h, 2 * w)).collect::<Vec<_>>()
        );
        assert_eq!(automatic((128, 128)), [(128, 128)]);
        assert!((256..6000).step_by(8).all(|side| (2..=MAX_BUCKETS).contains(&automatic((side, side)).len())));
        let other = automatic((1152, 896));
        assert!(other.len() == 10 && other[0] == (1152, 896) && other[1..].iter().all(|size| *size != other[0]));
    }
}
