//! The files that hold the weights of one part of a model: a safetensors file, or several with an index.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::brief::Brief;
use crate::code::Code;
use crate::digest;
use crate::header::{self, FileHeader};
use crate::objects::{self, Objects};
use crate::safetensors::TensorInfo;

/// What diffusers calls the weights of a denoiser or VAE.
pub const DIFFUSERS: &str = "diffusion_pytorch_model";
/// What transformers calls the weights of a text encoder.
pub const TRANSFORMERS: &str = "model";

/// SDXL's header has 210 kB, the index of a text encoder of 11 B parameters 20 kB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Models of hundreds of gigabytes come in some dozen files.
const MAX_FILES: usize = 512;
/// Between the file's stem and its ending, in the order in which they are looked for: full precision first.
const VARIANTS: [&str; 3] = ["", ".fp16", ".bf16"];

/// Why weights can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Objects(#[from] objects::Error),
    /// A header can't be trusted.
    #[error(transparent)]
    Header(Box<header::Error>),
    /// There are no weights.
    #[error(
        "no {key} and no {key}.index.json under {url}: check that the model was downloaded whole, or save it with \
         safe_serialization=True"
    )]
    Missing {
        /// The model's folder.
        url: String,
        /// The file that was looked for first.
        key: String,
    },
    /// There are weights, and reading them could run a stranger's code.
    #[error(
        "{url}/{key} is a pickle, which can run any code when it is loaded and so is never read; convert the model where \
         you trust it: `DiffusionPipeline.from_pretrained(\"MODEL\", use_safetensors=False).save_pretrained(\"FOLDER\", \
         safe_serialization=True)` in Python, and give that folder"
    )]
    Pickle {
        /// The model's folder.
        url: String,
        /// The file.
        key: String,
    },
    /// The index is none.
    #[error("{url}/{key}: {reason}; download or save the model again")]
    Index {
        /// The model's folder.
        url: String,
        /// The index.
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
            Self::Header(error) => error.code(),
            Self::Missing { .. } => Code::WeightsMissing,
            Self::Pickle { .. } => Code::Pickle,
            Self::Index { .. } => Code::WeightsDamaged,
        }
    }
}

impl From<header::Error> for Error {
    fn from(error: header::Error) -> Self {
        match error {
            header::Error::Objects(error) => Self::Objects(error),
            error => Self::Header(Box::new(error)),
        }
    }
}

/// The weights of one part of a model. No tensor was read.
#[derive(Clone, Debug)]
pub struct Files {
    /// The file, or the index of the files.
    pub key: String,
    /// At least one, in order of their keys; none has a tensor that another has too.
    pub files: Vec<FileHeader>,
    /// BLAKE3 of the one header, or of the headers' digests in a row, hex.
    pub digest: String,
}

#[derive(Deserialize)]
struct Index {
    /// For each tensor, the file that holds it.
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Looks for the weights of `component`, a folder of the model, whose files are called `stem`: full precision
    /// before variants, one file before several.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Pickle`]; headers and indices that can't be trusted; failures of the store.
    pub async fn find(folder: &Objects, component: &str, stem: &str) -> Result<Self, Error> {
        for variant in VARIANTS {
            let key = format!("{component}/{stem}{variant}.safetensors");
            match header::read(folder, &key, MAX_HEADER_BYTES).await {
                Ok(file) => return Ok(Self { key, digest: file.digest.clone(), files: vec![file] }),
                Err(header::Error::Objects(objects::Error::NotFound { .. })) => {}
                Err(error) => return Err(error.into()),
            }
            let key = format!("{component}/{stem}.safetensors.index{variant}.json");
            match folder.get(&key, MAX_HEADER_BYTES).await {
                Ok(json) => return Self::of_index(folder, component, key, &json).await,
                Err(objects::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for variant in VARIANTS {
            for key in [
                format!("{component}/{stem}{variant}.bin"),
                format!("{component}/{stem}.bin.index{variant}.json"),
                format!("{component}/pytorch_{stem}{variant}.bin"),
                format!("{component}/pytorch_{stem}.bin.index{variant}.json"),
            ] {
                match folder.size(&key).await {
                    Ok(_) => return Err(Error::Pickle { url: folder.url().to_owned(), key }),
                    Err(objects::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(Error::Missing { url: folder.url().to_owned(), key: format!("{component}/{stem}.safetensors") })
    }

    async fn of_index(folder: &Objects, component: &str, key: String, json: &[u8]) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Index { url: folder.url().to_owned(), key: key.clone(), reason };
        let Index { weight_map } = serde_json::from_slice(json)
            .map_err(|e| wrong(format!("it is no index of safetensors files ({})", Brief(&e))))?;
        let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        if names.is_empty() || names.len() > MAX_FILES {
            return Err(wrong(format!("it names {} files, and 1 to {MAX_FILES} are expected", names.len())));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            if !name.ends_with(".safetensors") || name.contains(['/', '\\']) {
                let name = Brief(name);
                return Err(wrong(format!("it names the file `{name}`, which is no safetensors file beside it")));
            }
            let found = header::read(folder, &format!("{component}/{name}"), MAX_HEADER_BYTES).await;
            files.push(found.map_err(|error| match error {
                header::Error::Objects(objects::Error::NotFound { .. }) => {
                    wrong(format!("it names the file `{}`, which is not there", Brief(name)))
                }
                other => other.into(),
            })?);
        }
        let mut holders = BTreeMap::new();
        for file in &files {
            for tensor in file.header.tensors.keys() {
                if let Some(other) = holders.insert(tensor.as_str(), file.key.as_str()) {
                    let tensor = Brief(tensor.as_str());
                    return Err(wrong(format!("both {other} and {} hold the tensor `{tensor}`", file.key)));
                }
            }
        }
        let at = |name: &str| format!("{component}/{name}");
        let misplaced =
            weight_map.iter().find(|(tensor, file)| holders.get(tensor.as_str()) != Some(&at(file).as_str()));
        if let Some((tensor, file)) = misplaced {
            let tensor = Brief(tensor.as_str());
            return Err(wrong(format!("{file} has no tensor `{tensor}`, which the index says it has")));
        }
        let digest = digest::of(files.iter().map(|file| file.digest.as_str()).collect::<String>().as_bytes());
        Ok(Self { key, files, digest })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.files.iter().find_map(|file| file.header.tensors.get(name))
    }

    /// Every tensor, by file and name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.files.iter().flat_map(|file| file.header.tensors.iter().map(|(name, info)| (name.as_str(), info)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::safetensors::{Dtype, serialize_header};

    fn write(folder: &Path, file: &str, tensors: &[&str]) {
        let entries = tensors.iter().map(|name| (*name, Dtype::F16, &[2_usize][..]));
        let mut bytes = serialize_header(entries, &BTreeMap::new()).expect("a header");
        bytes.extend(vec![0; 4 * tensors.len()]);
        std::fs::write(folder.join("unet").join(file), bytes).expect("writes");
    }

    fn index(folder: &Path, map: &str) {
        let json = format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {map}}}"#);
        std::fs::write(folder.join("unet/diffusion_pytorch_model.safetensors.index.json"), json).expect("writes");
    }

    async fn find(folder: &Path) -> Result<Files, Error> {
        let url = url::Url::from_directory_path(folder).expect("absolute");
        Files::find(&Objects::open(url.as_str()).expect("opens"), "unet", DIFFUSERS).await
    }

    #[tokio::test]
    async fn one_file_then_several_then_a_variant_then_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        std::fs::create_dir(at.join("unet")).expect("creates");
        assert!(matches!(find(at).await, Err(Error::Missing { .. })));
        std::fs::write(at.join("unet/diffusion_pytorch_model.bin"), "pickle").expect("writes");
        let refused = find(at).await.expect_err("a pickle").to_string();
        assert!(refused.contains("unet/diffusion_pytorch_model.bin") && refused.contains("safe_serialization"));

        write(at, "diffusion_pytorch_model.fp16.safetensors", &["a", "b"]);
        assert_eq!(find(at).await.expect("the variant").tensors().count(), 2);
        write(at, "1.safetensors", &["a"]);
        write(at, "2.safetensors", &["b", "c"]);
        index(at, r#"{"a": "1.safetensors", "b": "2.safetensors"}"#);
        let several = find(at).await.expect("several");
        assert_eq!(several.files.len(), 2);
        assert_eq!(several.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(several.tensor("c").is_some() && several.tensor("d").is_none());
        write(at, "diffusion_pytorch_model.safetensors", &["a"]);
        let one = find(at).await.expect("one");
        assert_eq!((one.files.len(), &one.digest), (1, &one.files[0].digest));
    }

    #[tokio::test]
    async fn an_index_that_lies_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        std::fs::create_dir(at.join("unet")).expect("creates");
        write(at, "1.safetensors", &["a"]);
        write(at, "2.safetensors", &["a", "b"]);
        for (map, said) in [
            (r#"[]"#, "no index"),
            (r#"{}"#, "0 files"),
            (r#"{"a": "../1.safetensors"}"#, "beside it"),
            (r#"{"a": "1.bin"}"#, "beside it"),
            (r#"{"a": "3.safetensors"}"#, "not there"),
            (r#"{"a": "1.safetensors", "b": "1.safetensors"}"#, "no tensor `b`"),
            (r#"{"a": "1.safetensors", "b": "2.safetensors"}"#, "both"),
        ] {
            index(at, map);
            let error = find(at).await.expect_err(map).to_string();
            assert!(error.contains(said), "{map}: {error}");
        }
    }
}
