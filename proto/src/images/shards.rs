//! Images as members of WebDataset shards. A shard is walked from header to header; images are not read.

use bytes::Bytes;
use serde::Deserialize;
use tar::{EntryType, Header, PaxExtensions};

use super::{Error, Image, MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, caption, count, ending, is_image, wrong_file};
use crate::objects::Objects;

const BLOCK: u64 = 512;
/// Read at a time: headers and captions of several samples where images are small.
const WINDOW: u64 = 1 << 20;
/// Names that don't fit a header, and what else stands in an extended one.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

pub(crate) async fn read(objects: &Objects, mut keys: Vec<String>, most: usize) -> Result<Vec<Image>, Error> {
    keys.retain(|key| ending(key).as_deref() == Some("tar"));
    keys.sort();
    let (mut images, mut captions_bytes) = (Vec::new(), 0);
    for key in keys {
        if images.len() >= most {
            break;
        }
        let (size, window) = (objects.size(&key).await?, (0, Bytes::new()));
        let mut shard = Shard { objects, size, key, position: 0, window, captions_bytes };
        shard.read(most, &mut images).await?;
        captions_bytes = shard.captions_bytes;
    }
    images.truncate(most);
    Ok(images)
}

/// What is known of the sample that is being read.
#[derive(Default)]
struct Pending {
    name: String,
    image: Option<(u64, u64)>,
    /// The image's own name, for messages.
    member: String,
    text: Option<String>,
}

struct Shard<'a> {
    objects: &'a Objects,
    key: String,
    size: u64,
    /// Of the next header.
    position: u64,
    /// What was read last, and from where on.
    window: (u64, Bytes),
    /// Of all images so far, those of other shards too.
    captions_bytes: u64,
}

struct Member {
    name: String,
    start: u64,
    size: u64,
}

#[derive(Deserialize)]
struct Json {
    caption: Option<String>,
}

impl Shard<'_> {
    async fn read(&mut self, most: usize, images: &mut Vec<Image>) -> Result<(), Error> {
        let mut pending = Pending::default();
        while images.len() < most {
            let Some(member) = self.next().await? else { break };
            let (name, kind) = split(&member.name);
            if name != pending.name {
                self.finish(std::mem::take(&mut pending), images)?;
                pending.name = name.to_owned();
            }
            match kind {
                "txt" => pending.text = Some(self.caption(&member).await?),
                "json" if pending.text.is_none() => {
                    let text = self.caption(&member).await?;
                    let json: Json =
                        serde_json::from_str(&text).map_err(|e| self.wrong(format!("{}: {e}", member.name)))?;
                    pending.text = json.caption.map(|caption| caption.trim().to_owned());
                }
                _ if is_image(&member.name) => {
                    if member.size > MAX_IMAGE_BYTES {
                        return Err(self.wrong(format!("{} has {} bytes", member.name, member.size)));
                    }
                    pending.image = Some((member.start, member.start + member.size));
                    pending.member = member.name;
                }
                _ => {}
            }
        }
        self.finish(pending, images)
    }

    fn finish(&mut self, pending: Pending, images: &mut Vec<Image>) -> Result<(), Error> {
        let Some((start, end)) = pending.image else { return Ok(()) };
        let Some(caption) = pending.text else {
            let reason = format!("{} has no caption: a .txt, or a .json with a `caption`, of its name", pending.member);
            return Err(self.wrong(reason));
        };
        count(&mut self.captions_bytes, &caption, self.objects)?;
        images.push(Image { key: self.key.clone(), start, end, caption });
        Ok(())
    }

    async fn caption(&mut self, member: &Member) -> Result<String, Error> {
        if member.size > MAX_CAPTION_BYTES {
            return Err(self.wrong(format!("{} has {} bytes, too many for a caption", member.name, member.size)));
        }
        let bytes = self.bytes(member.start, member.size).await?;
        caption(self.objects, &format!("{}/{}", self.key, member.name), &bytes)
    }

    /// The next file; `None` at the end.
    async fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut long_name = None;
        loop {
            // Writers may leave the closing blocks out.
            if self.position >= self.size {
                return Ok(None);
            }
            let block = self.bytes(self.position, BLOCK).await?;
            if block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            let checked = header.cksum().is_ok_and(|sum| sum == checksum(&block));
            let (true, Ok(size)) = (checked, header.entry_size()) else {
                return Err(
                    self.wrong(format!("there is no header at byte {}: it is no tar file, or cut off", self.position))
                );
            };
            let start = self.position + BLOCK;
            let end = start.checked_add(size).filter(|end| *end <= self.size);
            let Some(end) = end else {
                return Err(self.wrong(format!("it is cut off: a member of {size} bytes begins at byte {start}")));
            };
            self.position = end.next_multiple_of(BLOCK);
            match header.entry_type() {
                EntryType::GNULongName | EntryType::XHeader => {
                    if size > MAX_EXTENSION_BYTES {
                        return Err(self.wrong(format!("a name at byte {start} has {size} bytes")));
                    }
                    let bytes = self.bytes(start, size).await?;
                    long_name = match header.entry_type() {
                        EntryType::GNULongName => {
                            Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
                        }
                        _ => path_of(&bytes).or(long_name),
                    };
                }
                EntryType::Regular | EntryType::Continuous => {
                    let name = long_name.unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
                    return Ok(Some(Member { name, start, size }));
                }
                // Folders, links and comments hold no sample.
                _ => long_name = None,
            }
        }
    }

    async fn bytes(&mut self, start: u64, len: u64) -> Result<Bytes, Error> {
        let within = |(from, bytes): &(u64, Bytes)| start >= *from && start + len <= from + bytes.len() as u64;
        if !within(&self.window) {
            let end = (start + len.max(WINDOW)).min(self.size);
            self.window = (start, self.objects.get_range(&self.key, start, end).await?);
        }
        if !within(&self.window) {
            return Err(self.wrong(format!("it is cut off at byte {start}")));
        }
        let from = (start - self.window.0) as usize;
        Ok(self.window.1.slice(from..from + len as usize))
    }

    fn wrong(&self, reason: String) -> Error {
        wrong_file(self.objects, &self.key, reason)
    }
}

/// A member's sample and what it is of it: the name is split at the first dot of its last part.
fn split(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

/// `path` of an extended header.
fn path_of(bytes: &[u8]) -> Option<String> {
    let mut found = None;
    for extension in PaxExtensions::new(bytes).flatten() {
        if extension.key() == Ok("path") {
            found = extension.value().ok().map(str::to_owned);
        }
    }
    found
}

/// The sum of a header's bytes, those of the sum itself taken for spaces.
fn checksum(block: &[u8]) -> u32 {
    let of = |(i, byte): (usize, &u8)| if (148..156).contains(&i) { u32::from(b' ') } else { u32::from(*byte) };
    block.iter().enumerate().map(of).sum()
}
