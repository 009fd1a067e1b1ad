//! Images as files of a folder.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Error, Image, MAX_CAPTION_BYTES, MAX_CAPTIONS_BYTES, MAX_SAMPLES, caption, count, is_image, wrong_file};
use crate::objects::{self, Objects};

const METADATA: &str = "metadata.jsonl";

/// A line of [`METADATA`].
#[derive(Deserialize)]
struct Line {
    file_name: String,
    text: String,
}

pub(crate) async fn read(objects: &Objects, keys: Vec<String>, most: usize) -> Result<Vec<Image>, Error> {
    let captions = read_metadata(objects).await?;
    let mut names: Vec<String> = keys.into_iter().filter(|key| is_image(key)).collect();
    names.sort();
    names.truncate(most.min(MAX_SAMPLES));
    let (mut images, mut captions_bytes) = (Vec::with_capacity(names.len()), 0);
    for key in names {
        let caption = match captions.get(&key) {
            Some(caption) => caption.clone(),
            None => read_caption(objects, &key).await?,
        };
        count(&mut captions_bytes, &caption, objects)?;
        let end = objects.size(&key).await?;
        images.push(Image { key, start: 0, end, caption });
    }
    Ok(images)
}

/// Captions by name of the image; none where there is no such file.
async fn read_metadata(objects: &Objects) -> Result<BTreeMap<String, String>, Error> {
    let bytes = match objects.get(METADATA, MAX_CAPTIONS_BYTES).await {
        Ok(bytes) => bytes,
        Err(objects::Error::NotFound { .. }) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let read = |(number, line): (usize, &[u8])| {
        let Line { file_name, text } = serde_json::from_slice(line).map_err(|e| {
            let reason = format!("line {}: {e}; expected {{\"file_name\": \"…\", \"text\": \"…\"}}", number + 1);
            wrong_file(objects, METADATA, reason)
        })?;
        let text = caption(objects, METADATA, text.as_bytes())?;
        Ok((file_name, text))
    };
    lines.map(read).collect()
}

async fn read_caption(objects: &Objects, image: &str) -> Result<String, Error> {
    let stem = image.rsplit_once('.').map_or(image, |(stem, _)| stem);
    let key = format!("{stem}.txt");
    match objects.get(&key, MAX_CAPTION_BYTES).await {
        Ok(bytes) => caption(objects, &key, &bytes),
        Err(objects::Error::NotFound { .. }) => {
            let reason = format!("it has no caption: write one to {key}, or a line of {METADATA}");
            Err(wrong_file(objects, image, reason))
        }
        Err(error) => Err(error.into()),
    }
}
