//! `samples.png`: the teacher's pictures above the student's from the same noise, each pair under its prompt.

use super::Error;
use super::canvas::{CHARACTER_WIDTH, LINE_HEIGHT, Rgb};
use super::part::Pictures;

/// Smaller pictures are enlarged until their longer side has at least this many pixels,
const LEAST_SIDE: usize = 128;
/// and larger ones are reduced until it has at most this many.
const MOST_SIDE: usize = 256;
/// Pixels between pictures.
const GAP: usize = 12;
/// Room for the words at the left.
const LABELS: usize = 7 * CHARACTER_WIDTH + 2 * GAP;
/// The picture is made no wider than this where one pair fits in.
const MOST_WIDTH: usize = 1400;
const MOST_COLUMNS: usize = 8;
/// Lines that a prompt may take.
const MOST_LINES: usize = 4;

/// Teacher's and student's picture of one prompt.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) prompt: String,
    teacher: Rgb,
    student: Rgb,
}

/// The pairs of a part, at the size in which they are shown.
pub(super) fn pairs(part: &Pictures, prompts: &[String]) -> Vec<Pair> {
    let shown = |pictures: &[f32], i| shown(part.picture(pictures, i), part.height, part.width);
    let row = |i: usize| usize::try_from(part.prompt[i]).ok().and_then(|row| prompts.get(row));
    let pair = |i| Pair {
        prompt: row(i).cloned().unwrap_or_default(),
        teacher: shown(&part.teacher, i),
        student: shown(&part.student, i),
    };
    (0..part.prompt.len()).map(pair).collect()
}

/// Draws all pairs, in as many bands of columns as are needed.
pub(super) fn png(pairs: &[Pair]) -> Result<Vec<u8>, Error> {
    let largest = |side: fn(&Rgb) -> usize| pairs.iter().map(|pair| side(&pair.teacher)).max().unwrap_or(LEAST_SIDE);
    let (width, height) = (largest(|picture| picture.width), largest(|picture| picture.height));
    let columns = (MOST_WIDTH.saturating_sub(LABELS) / (width + GAP)).clamp(1, MOST_COLUMNS).min(pairs.len().max(1));

    let bands: Vec<(&[Pair], usize)> = pairs.chunks(columns).map(|band| (band, lines(band, width))).collect();
    let band_height = |lines: usize| GAP + lines * LINE_HEIGHT + GAP / 2 + 2 * height + GAP / 2;
    let total = bands.iter().map(|(_, lines)| band_height(*lines)).sum::<usize>() + GAP;
    let mut canvas = Rgb::white(LABELS + columns * (width + GAP), total);

    let mut top = 0;
    for (band, lines) in bands {
        let teacher_y = top + GAP + lines * LINE_HEIGHT + GAP / 2;
        let student_y = teacher_y + height + GAP / 2;
        for (label, y) in [("teacher", teacher_y), ("student", student_y)] {
            canvas.write_centred(label, LABELS / 2, y + (height.saturating_sub(LINE_HEIGHT)) / 2);
        }
        for (column, pair) in band.iter().enumerate() {
            let x = LABELS + column * (width + GAP);
            // Short prompts stand right above their pictures.
            let text = wrap(&pair.prompt, width / CHARACTER_WIDTH);
            let first_y = top + GAP + (lines - text.len()) * LINE_HEIGHT;
            for (line, text) in text.iter().enumerate() {
                canvas.write_centred(text, x + width / 2, first_y + line * LINE_HEIGHT);
            }
            canvas.paste(&pair.teacher, x, teacher_y);
            canvas.paste(&pair.student, x, student_y);
        }
        top += band_height(lines);
    }
    Ok(canvas.png()?)
}

fn lines(band: &[Pair], width: usize) -> usize {
    band.iter().map(|pair| wrap(&pair.prompt, width / CHARACTER_WIDTH).len()).max().unwrap_or_default()
}

/// Breaks a text into lines of at most `most` characters, between words where it can; what is too long ends in "...".
fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(4);
    let mut lines: Vec<String> = Vec::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let characters: Vec<char> = word.chars().collect();
        for (i, piece) in characters.chunks(most).enumerate() {
            match lines.last_mut() {
                Some(line) if i == 0 && used + 1 + piece.len() <= most => {
                    line.push(' ');
                    line.extend(piece);
                    used += 1 + piece.len();
                }
                _ => {
                    lines.push(piece.iter().collect());
                    used = piece.len();
                }
            }
        }
        if lines.len() > MOST_LINES {
            lines.truncate(MOST_LINES);
            let last = &mut lines[MOST_LINES - 1];
            *last = last.chars().take(most - 3).chain("...".chars()).collect();
            break;
        }
    }
    lines
}

/// A picture [3,H,W] of −1…1 at the size in which it is shown: whole multiples up, averages over squares down.
fn shown(picture: &[f32], height: usize, width: usize) -> Rgb {
    let longer = height.max(width).max(1);
    if longer <= MOST_SIDE {
        let up = LEAST_SIDE.div_ceil(longer);
        return resized(height * up, width * up, |channel, y, x| at(picture, height, width, channel, y / up, x / up));
    }
    let down = longer.div_ceil(MOST_SIDE);
    resized((height / down).max(1), (width / down).max(1), |channel, y, x| {
        let square = (0..down * down).map(|i| (y * down + i / down, x * down + i % down));
        let sum: f32 = square.map(|(y, x)| at(picture, height, width, channel, y, x)).sum();
        sum / (down * down) as f32
    })
}

/// One pixel; those beyond an edge are the edge's.
fn at(picture: &[f32], height: usize, width: usize, channel: usize, y: usize, x: usize) -> f32 {
    let (y, x) = (y.min(height - 1), x.min(width - 1));
    picture.get((channel * height + y) * width + x).copied().unwrap_or_default().clamp(-1.0, 1.0)
}

fn resized(height: usize, width: usize, value: impl Fn(usize, usize, usize) -> f32) -> Rgb {
    let mut pixels = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend((0..3).map(|channel| ((value(channel, y, x) + 1.0) * 127.5).round() as u8));
        }
    }
    Rgb { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_wrapped_to_their_column() {
        assert_eq!(wrap("a yellow triangle", 12), ["a yellow", "triangle"]);
        assert_eq!(wrap("", 12), [""; 0]);
        assert_eq!(wrap("extraordinarily", 6), ["extrao", "rdinar", "ily"]);
        let long = wrap("one two three four five six seven eight nine ten", 6);
        assert_eq!(long.len(), MOST_LINES);
        assert!(long[MOST_LINES - 1].ends_with("..."), "{long:?}");
        assert!(wrap("ein großer Baum über dem Fluß", 8).iter().all(|line| line.chars().count() <= 8));
    }

    #[test]
    fn small_pictures_are_enlarged_and_large_ones_reduced() {
        let size = |h, w| {
            let picture = shown(&vec![0.0; 3 * h * w], h, w);
            (picture.height, picture.width)
        };
        assert_eq!(size(32, 32), (128, 128));
        assert_eq!(size(8, 16), (64, 128));
        assert_eq!(size(200, 100), (200, 100));
        assert_eq!(size(1024, 512), (256, 128));
        let colours = shown(&[1.0, 1.0, -1.0, -1.0, 0.0, 0.0], 1, 2).pixels;
        assert_eq!(colours[..3], [255, 0, 128]);
    }
}
