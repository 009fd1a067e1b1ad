//! A white RGB picture to draw text and other pictures on.

use std::convert::Infallible;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_10X20;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Pixel, Point, RgbColor, Size};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

/// Width of a character in pixels.
pub(super) const CHARACTER_WIDTH: usize = 10;
/// Height of a line of text in pixels.
pub(super) const LINE_HEIGHT: usize = 20;

const INK: Rgb888 = Rgb888::new(0x22, 0x22, 0x22);

/// 8 bits a channel, rows from the top.
#[derive(Clone, Debug)]
pub(super) struct Rgb {
    pub(super) width: usize,
    pub(super) height: usize,
    /// [height, width, 3].
    pub(super) pixels: Vec<u8>,
}

impl Rgb {
    pub(super) fn white(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![0xff; width * height * 3] }
    }

    /// Copies `other` to (x, y); it must fit.
    pub(super) fn paste(&mut self, other: &Self, x: usize, y: usize) {
        for (row, line) in other.pixels.chunks_exact(other.width * 3).enumerate() {
            let start = ((y + row) * self.width + x) * 3;
            self.pixels[start..start + line.len()].copy_from_slice(line);
        }
    }

    /// Writes one line of text, its upper edge at y and centred on x. What is outside of the picture is not drawn.
    pub(super) fn write_centred(&mut self, text: &str, x: usize, y: usize) {
        let style = TextStyleBuilder::new().alignment(Alignment::Center).baseline(Baseline::Top).build();
        let at = Point::new(x as i32, y as i32);
        let drawn = Text::with_text_style(text, at, MonoTextStyle::new(&FONT_10X20, INK), style).draw(self);
        match drawn {
            Ok(_) => {}
            Err(never) => match never {},
        }
    }

    /// As PNG.
    pub(super) fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }
}

impl OriginDimensions for Rgb {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Rgb {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(at, color) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y)) else { continue };
            if x < self.width && y < self.height {
                let start = (y * self.width + x) * 3;
                self.pixels[start..start + 3].copy_from_slice(&[color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}
