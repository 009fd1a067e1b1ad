//! Data sets of images with captions: which samples a folder has, in an order that every process agrees on.
//!
//! A folder holds images (`.jpg`, `.jpeg`, `.png`, `.webp`), each with its caption in a `.txt` of the same name or in
//! `metadata.jsonl` (`{"file_name": …, "text": …}`, as the `imagefolder` of Hugging Face's datasets has it); or it holds
//! WebDataset shards, `.tar` files with an image and a `.txt`, or a `.json` with a `caption`, of the same name.

mod folder;
mod shards;

use crate::brief::Brief;
use crate::code::Code;
use crate::objects::{self, Objects};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::{folder::read as read_folder, shards::read as read_shards};

/// Images that are looked at.
const MAX_SAMPLES: usize = 1 << 20;
/// A caption has some hundred bytes.
const MAX_CAPTION_BYTES: u64 = 64 << 10;
/// Of all captions of a data set together: a coordinator holds them, which has little memory.
const MAX_CAPTIONS_BYTES: u64 = 256 << 20;
/// Bytes of one image.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;
const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Why images can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// The folder is no data set.
    #[error("{url}: {reason}")]
    Folder {
        /// The folder.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of it can't be used.
    #[error("{url}/{key}: {reason}")]
    File {
        /// The folder.
        url: String,
        /// The file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    /// Names the cause, and what helps.
    pub fn code(&self) -> Code {
        match self {
            Self::Objects(error) => error.code(),
            Self::Folder { .. } | Self::File { .. } => Code::Images,
        }
    }
}

/// One image and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The object that holds it.
    pub key: String,
    /// Its first byte there.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What it shows.
    pub caption: String,
}

/// The samples of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// By name of the image, or by shard and place in it.
    pub images: Vec<Image>,
    /// BLAKE3 of all that, hex. The pixels are not in it.
    pub digest: String,
}

impl Index {
    /// The first `most` images of the folder at `url`; all of them for 0.
    ///
    /// # Errors
    /// A folder that holds neither images nor shards, an image without a caption, a shard that is no tar file.
    pub async fn read(url: &str, most: usize) -> Result<Self, Error> {
        let objects = Objects::open(url)?;
        let most = if most == 0 { MAX_SAMPLES } else { most.min(MAX_SAMPLES) };
        // An image, its caption, and the file that names them all.
        let keys = objects.list(2 * MAX_SAMPLES + 2).await?;
        let ends_with = |key: &String, endings: &[&str]| ending(key).is_some_and(|ending| endings.contains(&&*ending));
        let has = |endings: &[&str]| keys.iter().any(|key| ends_with(key, endings));
        let images = match (has(&IMAGES), has(&["tar"])) {
            (true, false) => folder::read(&objects, keys, most).await?,
            (false, true) => shards::read(&objects, keys, most).await?,
            (true, true) => {
                return Err(wrong(&objects, "it holds both images and .tar files; give one kind a folder of its own"));
            }
            (false, false) => {
                let expected = "it holds no images (.jpg, .jpeg, .png, .webp) and no WebDataset shards (.tar)";
                return Err(wrong(&objects, expected));
            }
        };
        let mut digest = blake3::Hasher::new();
        for Image { key, start, end, caption } in &images {
            for part in [key.as_bytes(), &start.to_le_bytes(), &end.to_le_bytes(), caption.as_bytes()] {
                digest.update(&(part.len() as u64).to_le_bytes());
                digest.update(part);
            }
        }
        Ok(Self { images, digest: digest.finalize().to_hex().to_string() })
    }
}

/// What follows the last dot of a file's name, in lower case.
fn ending(key: &str) -> Option<String> {
    let name = key.rsplit('/').next().unwrap_or(key);
    name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase())
}

fn is_image(name: &str) -> bool {
    ending(name).is_some_and(|ending| IMAGES.contains(&&*ending))
}

fn wrong(objects: &Objects, reason: &str) -> Error {
    Error::Folder { url: objects.url().to_owned(), reason: reason.to_owned() }
}

fn wrong_file(objects: &Objects, key: &str, reason: impl Into<String>) -> Error {
    let (key, reason) = (Brief(key).to_string(), Brief(reason.into().as_str()).to_string());
    Error::File { url: objects.url().to_owned(), key, reason }
}

/// Counts a caption among those of a data set.
fn count(total: &mut u64, caption: &str, objects: &Objects) -> Result<(), Error> {
    *total += caption.len() as u64;
    match *total > MAX_CAPTIONS_BYTES {
        true => Err(wrong(objects, &format!("its captions have more than {MAX_CAPTIONS_BYTES} bytes"))),
        false => Ok(()),
    }
}

/// A caption from a file: UTF-8, without space around it.
fn caption(objects: &Objects, key: &str, bytes: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(bytes).map_err(|e| wrong_file(objects, key, format!("it is no text ({e})")))?;
    let text = text.trim();
    match text.len() as u64 > MAX_CAPTION_BYTES {
        true => Err(wrong_file(objects, key, format!("a caption has {} bytes", text.len()))),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    async fn read(folder: &Path, most: usize) -> Result<Vec<(String, u64, u64, String)>, String> {
        let url = url::Url::from_directory_path(folder).expect("absolute");
        let index = Index::read(url.as_str(), most).await.map_err(|e| e.to_string())?;
        Ok(index.images.into_iter().map(|image| (image.key, image.start, image.end, image.caption)).collect())
    }

    #[tokio::test]
    async fn a_folder_is_read_in_order_of_names_with_captions_of_either_kind() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        assert!(read(at, 0).await.expect_err("empty").contains("no images"));
        fs::create_dir(at.join("sub")).expect("made");
        for (file, text) in [("b.png", "image"), ("b.txt", " a dog\n"), ("sub/a.JPG", "images"), ("notes.md", "")] {
            fs::write(at.join(file), text).expect("written");
        }
        assert!(read(at, 0).await.expect_err("no caption").contains("sub/a.JPG: it has no caption"));
        fs::write(at.join("metadata.jsonl"), "{\"file_name\": \"sub/a.JPG\", \"text\": \"a cat\"}\n\n")
            .expect("written");
        let all = [("b.png".to_owned(), 0, 5, "a dog".to_owned()), ("sub/a.JPG".to_owned(), 0, 6, "a cat".to_owned())];
        assert_eq!(read(at, 0).await.expect("images"), all);
        assert_eq!(read(at, 1).await.expect("images"), all[..1]);
        fs::write(at.join("metadata.jsonl"), "{\"file_name\": 3}\n").expect("written");
        assert!(read(at, 0).await.expect_err("metadata").contains("metadata.jsonl: line 1"));
    }

    fn shard(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *bytes).expect("appended");
        }
        tar.into_inner().expect("a shard")
    }

    #[tokio::test]
    async fn shards_are_read_member_by_member_whatever_their_order_and_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let long = "x".repeat(150);
        let large = vec![7; 3 << 20];
        let first = shard(&[
            ("0001.jpg", b"first"),
            ("0001.txt", b"a dog\n"),
            ("0001.cls", b"3"),
            (&format!("{long}/2.json"), br#"{"caption": "a cat"}"#),
            (&format!("{long}/2.png"), &large),
            ("3.txt", b"no image"),
        ]);
        fs::write(at.join("b.tar"), &first).expect("written");
        fs::write(at.join("a.tar"), shard(&[("9.webp", b"ninth"), ("9.txt", "a bird".as_bytes())])).expect("written");
        let found = read(at, 0).await.expect("shards");
        let captions: Vec<(&str, &str)> = found.iter().map(|(key, _, _, caption)| (&**key, &**caption)).collect();
        assert_eq!(captions, [("a.tar", "a bird"), ("b.tar", "a dog"), ("b.tar", "a cat")]);
        let bytes = |(_, start, end, _): &(String, u64, u64, String)| &first[*start as usize..*end as usize];
        assert_eq!((bytes(&found[1]), bytes(&found[2])), (&b"first"[..], &large[..]));
        assert_eq!(read(at, 2).await.expect("shards").len(), 2);

        fs::write(at.join("a.tar"), shard(&[("9.webp", b"ninth")])).expect("written");
        assert!(read(at, 0).await.expect_err("no caption").contains("9.webp"));
        for broken in [&first[..700], &[1; 2000][..]] {
            fs::write(at.join("a.tar"), broken).expect("written");
            assert!(read(at, 0).await.expect_err("broken").contains("a.tar"));
        }
    }
}
