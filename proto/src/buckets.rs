//! Buckets: the sizes that a job's latents have, by aspect ratio. A job of one size has one.

use crate::v1::{JobPlan, LayerPlan};

/// Height and width.
pub type Size = (usize, usize);

/// One of a job's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Of the latents.
    pub latent: Size,
    /// Of the pictures, in pixels.
    pub picture: Size,
}

/// The buckets of a job, at least one.
pub fn of_job(plan: &JobPlan) -> Vec<Bucket> {
    let size = |height: u32, width: u32| (height as usize, width as usize);
    if plan.buckets.is_empty() {
        let latent = size(plan.latent_height, plan.latent_width);
        return vec![Bucket { latent, picture: size(plan.picture_height, plan.picture_width) }];
    }
    let buckets = plan.buckets.iter().map(|bucket| Bucket {
        latent: size(bucket.latent_height, bucket.latent_width),
        picture: size(bucket.picture_height, bucket.picture_width),
    });
    buckets.collect()
}

/// The sizes of a layer's map, by bucket, at least one.
pub fn maps(layer: &LayerPlan) -> Vec<Size> {
    if layer.maps.is_empty() {
        return vec![(layer.height as usize, layer.width as usize)];
    }
    layer.maps.iter().map(|map| (map.height as usize, map.width as usize)).collect()
}

/// Where the tensor `name` of one bucket stands in an object, of a job with so many: a job of one size calls it `name`,
/// one of several `name.0`, `name.1`, ….
pub fn tensor(name: &str, bucket: usize, buckets: usize) -> String {
    match buckets {
        0 | 1 => name.to_owned(),
        _ => format!("{name}.{bucket}"),
    }
}

/// Which of `sizes` is nearest to a picture of `size` in aspect ratio, on a logarithmic scale: the smallest factor between
/// the two ratios. The first of those that are as near.
pub fn nearest(sizes: &[Size], size: Size) -> usize {
    let by_factor = |(_, a): &(usize, &Size), (_, b): &(usize, &Size)| {
        let ((a, of_a), (b, of_b)) = (factor(**a, size), factor(**b, size));
        // a / of_a against b / of_b, exactly: every process must find the same.
        (a * of_b).cmp(&(b * of_a))
    };
    sizes.iter().enumerate().min_by(by_factor).map_or(0, |(index, _)| index)
}

/// The factor between two aspect ratios, at least 1, as a fraction.
fn factor((height, width): Size, (other_height, other_width): Size) -> (u128, u128) {
    // Sides have 32 bits, so the product of four of them has 128.
    let product = |a: usize, b: usize| (a.max(1) as u128) * (b.max(1) as u128);
    let (a, b) = (product(height, other_width), product(width, other_height));
    (a.max(b), a.min(b))
}

/// Whether two sizes have the same aspect ratio.
pub fn same_ratio(a: Size, b: Size) -> bool {
    let (larger, smaller) = factor(a, b);
    larger == smaller
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_go_to_the_nearest_ratio_whatever_their_size() {
        let sizes = [(1024, 1024), (832, 1216), (1216, 832), (768, 1344)];
        for (picture, expected) in [
            ((500, 500), 0),
            ((4000, 6000), 1),
            ((6000, 4000), 2),
            ((1080, 1920), 3),
            ((100, 10_000), 3),
            ((10_000, 100), 2),
            // 1.2 is 1.2 times 1 and 1.218 times less than 1216 / 832.
            ((1000, 1200), 0),
            ((1000, 1220), 1),
        ] {
            assert_eq!(nearest(&sizes, picture), expected, "{picture:?}");
        }
        // 2:1 and 1:2 are as far from a square as each other.
        assert_eq!(nearest(&[(2, 1), (1, 2)], (7, 7)), 0);
        assert_eq!(nearest(&[(1, 2), (2, 1)], (7, 7)), 0);
        assert_eq!(nearest(&sizes, (u32::MAX as usize, u32::MAX as usize - 1)), 0);
        assert!(same_ratio((1024, 768), (512, 384)) && !same_ratio((1024, 768), (512, 385)));
    }
}
