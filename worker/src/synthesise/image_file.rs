//! Images from bytes that nobody vouches for.

use std::io::Cursor;

use deltaconv_proto::Brief;
use deltaconv_proto::buckets::{Size, nearest};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

/// Longest side of an image that is decoded.
const MAX_SIDE: u32 = 32_768;

/// Which of `sizes` (height and width) is nearest to the image in aspect ratio, and the image at that size: upright, scaled until it
/// covers the size, and cropped to its middle. Decoded it has at most `most` bytes.
///
/// # Errors
/// Bytes that are no image, or one that is too large.
pub(crate) fn decode(bytes: &[u8], sizes: &[Size], most: u64) -> Result<(usize, RgbImage), String> {
    let said = |error: image::ImageError| Brief(&error).to_string();
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(most);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(said)?;
    // The decoder holds what it needs to these limits, and not the image: a few bytes may say that it has gigabytes.
    limits.reserve(decoder.total_bytes()).map_err(said)?;
    if bytes.starts_with(b"RIFF") {
        check_webp(bytes.get(12..).unwrap_or_default(), decoder.dimensions())?;
    }
    let orientation = decoder.orientation().map_err(said)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(said)?;
    image.apply_orientation(orientation);
    let bucket = nearest(sizes, (image.height() as usize, image.width() as usize));
    let (height, width) = *sizes.get(bucket).ok_or("the job has no size")?;
    let image = match (image.height() as usize, image.width() as usize) == (height, width) {
        true => image,
        false => image.resize_to_fill(width as u32, height as u32, FilterType::Lanczos3),
    };
    Ok((bucket, image.into_rgb8()))
}

/// That the chunks of a WebP file lie within it, and its frames within the picture: the decoder makes room for what they say before it
/// looks for it, and knows no limit.
fn check_webp(mut chunks: &[u8], (width, height): (u32, u32)) -> Result<(), &'static str> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number: u32, byte| number << 8 | u32::from(*byte));
    while let Some((header, rest)) = chunks.split_at_checked(8) {
        let (name, length) = header.split_at(4);
        let (chunk, rest) = rest.split_at_checked(number(length) as usize).ok_or("it is cut off")?;
        let field = |at: std::ops::Range<usize>| chunk.get(at).map(number).ok_or("a frame is cut off");
        let (of_width, of_height) = match name {
            b"VP8 " => (field(6..8)? & 0x3fff, field(8..10)? & 0x3fff),
            b"VP8L" => (1 + (field(1..5)? & 0x3fff), 1 + (field(1..5)? >> 14 & 0x3fff)),
            b"ANMF" => (1 + field(6..9)?, 1 + field(9..12)?),
            _ => (0, 0),
        };
        if of_width > width || of_height > height {
            return Err("a frame is larger than the picture");
        }
        if name == b"ANMF" {
            check_webp(chunk.get(16..).unwrap_or_default(), (of_width, of_height))?;
        }
        // Chunks have an even number of bytes, which the last one may lack.
        chunks = rest.get(chunk.len() % 2..).unwrap_or_default();
    }
    Ok(())
}

/// A door for fuzzing, as `deltaconv_proto::fuzzing` has them.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) const TARGET: (&str, fn(&[u8])) = ("picture", of_picture);

#[cfg(any(test, feature = "fuzzing"))]
fn of_picture(bytes: &[u8]) {
    const MOST: u64 = 8 << 20;
    let sizes = [(16, 16), (8, 24), (24, 8)];
    if let Some((bucket, image)) = deltaconv_proto::fuzzing::ok(decode(bytes, &sizes, MOST)) {
        assert_eq!((image.height() as usize, image.width() as usize), sizes[bucket]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of gray pixels whose header says that it has so many.
    fn png(side: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::GrayImage::new(4, 4).write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
        // After the signature the header: its length and name, then width and height.
        for at in [16, 20] {
            bytes[at..at + 4].copy_from_slice(&side.to_be_bytes());
        }
        let checksum = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    }

    #[test]
    fn an_image_that_says_it_is_huge_is_refused_before_it_takes_memory() {
        assert!(decode(&png(4), &[(4, 4)], 1 << 20).is_ok());
        for side in [2048, 32_768] {
            let refused = decode(&png(side), &[(4, 4)], 1 << 20).unwrap_err();
            assert!(refused.contains("limit"), "{side}: {refused}");
        }
        assert!(decode(&png(40_000), &[(4, 4)], u64::MAX).is_err());
    }

    #[test]
    fn chunks_of_webp_that_claim_more_than_there_is_are_refused() {
        let mut bytes = Vec::new();
        image::RgbImage::new(4, 4).write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::WebP).unwrap();
        assert!(decode(&bytes, &[(4, 4)], 1 << 20).is_ok());
        let exif = [&bytes[..], b"EXIF", &[0xff; 4]].concat();
        assert_eq!(decode(&exif, &[(4, 4)], 1 << 20).unwrap_err(), "it is cut off");
        let frame = |width: u16| [b"VP8 ", &10_u32.to_le_bytes()[..], &[0; 6], &width.to_le_bytes(), &[4, 0]].concat();
        assert_eq!(check_webp(&frame(4), (4, 4)), Ok(()));
        assert_eq!(check_webp(&frame(5), (4, 4)), Err("a frame is larger than the picture"));
        let nested = [b"ANMF", &34_u32.to_le_bytes()[..], &[0; 6], &[3, 0, 0, 3, 0, 0], &[0; 4], &frame(5)].concat();
        assert_eq!(check_webp(&nested, (4, 4)), Err("a frame is larger than the picture"));
    }

    #[test]
    fn what_was_kept_from_fuzzing_holds() {
        deltaconv_proto::fuzzing::replay(&[TARGET]);
    }
}
