//! An image as the VAE takes it.

use candle_core::{Device, Tensor};
use deltaconv_proto::buckets::Size;

use super::image_file;

/// Bytes that an image may have once it is decoded.
const MAX_BYTES: u64 = 2 << 30;

/// Which of `sizes` (height and width) is nearest to the image in aspect ratio, and the image at that size: [1, 3, height,
/// width] f32 in [−1, 1], upright, scaled until it covers the size, and cropped to its middle.
///
/// # Errors
/// Bytes that are no image, or one that is too large.
pub(super) fn read(bytes: &[u8], sizes: &[Size]) -> Result<(usize, Tensor), String> {
    let (bucket, image) = image_file::decode(bytes, sizes, MAX_BYTES)?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    let pixels = image.into_raw().into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0);
    let tensor = Tensor::from_iter(pixels, &Device::Cpu)
        .and_then(|pixels| pixels.reshape((1, height, width, 3))?.permute((0, 3, 1, 2))?.contiguous());
    Ok((bucket, tensor.map_err(|e| e.to_string())?))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;

    #[test]
    fn an_image_covers_the_size_and_keeps_its_middle() {
        // A red band in the middle of a picture that is twice as wide as high.
        let band = |x: u32| if (8..24).contains(&x) { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) };
        let image = RgbImage::from_fn(32, 16, |x, _| band(x));
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        let read_as = |size| read(&bytes, &[size]).unwrap().1;
        let whole = read_as((16, 32));
        assert_eq!(whole.dims(), [1, 3, 16, 32]);
        let mean = |tensor: &Tensor, channel: usize| {
            tensor.narrow(1, channel, 1).unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(mean(&whole, 0).abs() < 1e-6, "half of it is red");
        let middle = read_as((8, 8));
        assert!(mean(&middle, 0) > 0.9 && mean(&middle, 2) < -0.9, "only the band is left");
        let (bucket, wide) = read(&bytes, &[(8, 8), (8, 4), (4, 8)]).unwrap();
        assert_eq!((bucket, wide.dims()), (2, &[1, 3, 4, 8][..]), "the picture is twice as wide as high");
        assert!(read(&bytes[..40], &[(8, 8)]).is_err());
        assert!(read(b"no image", &[(8, 8)]).is_err());
    }
}
