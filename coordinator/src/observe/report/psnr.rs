//! The peak signal-to-noise ratio of pictures against the teacher's.
//!
//! Pixels are clamped to −1…1 as they would be to be shown, so peak to peak is 2: 10·log10(4 / mse) in decibels for each
//! picture, over all pixels and channels; then the mean over the pictures.

/// Identical pictures have no finite ratio; they count as this.
const MOST_DB: f64 = 100.0;

/// The ratio of one picture in dB; both are of one length.
pub(super) fn of_picture(teacher: &[f32], other: &[f32]) -> f64 {
    let squared = |(a, b): (&f32, &f32)| f64::from(a.clamp(-1.0, 1.0) - b.clamp(-1.0, 1.0)).powi(2);
    let mse = teacher.iter().zip(other).map(squared).sum::<f64>() / teacher.len().max(1) as f64;
    (10.0 * (4.0 / mse).log10()).min(MOST_DB)
}

pub(super) fn mean(ratios: &[f64]) -> f64 {
    ratios.iter().sum::<f64>() / ratios.len() as f64
}

pub(super) fn median(ratios: &[f64]) -> f64 {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_follow_the_convention() {
        // A difference of 0.2 everywhere: 10·log10(4 / 0.04) = 20 dB.
        assert!((of_picture(&[0.0, 0.5, -0.5], &[0.2, 0.3, -0.3]) - 20.0).abs() < 1e-5);
        // What is beyond the range isn't seen.
        assert_eq!(of_picture(&[1.0, -1.0], &[3.0, -1.5]), 100.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
