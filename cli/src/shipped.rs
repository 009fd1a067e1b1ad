//! The shipped teachers, carried in the executable so that a first conversion needs nothing else.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process;

use clap::ValueEnum;

use crate::error::Error;

/// A teacher that ships with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Teacher {
    /// A UNet as Stable Diffusion's
    TinyUnet,
    /// A transformer as PixArt's
    TinyPixart,
}

/// Paths in a folder with contents.
pub(crate) type Files = &'static [(&'static str, &'static [u8])];

macro_rules! shipped {
    ($teacher:literal: $($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../teachers/", $teacher, "/", $path)))),*]
    };
}

const TINY_UNET: Files = shipped![
    "tiny-unet":
    "latents.safetensors",
    "prompt_embeddings.safetensors",
    "prompts.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

const TINY_PIXART: Files = shipped![
    "tiny-pixart":
    "latents.safetensors",
    "prompt_embeddings.safetensors",
    "prompts.json",
    "scheduler/scheduler_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
];

impl Teacher {
    /// Its name and that of its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TinyUnet => "tiny-unet",
            Self::TinyPixart => "tiny-pixart",
        }
    }

    /// Model, latents and prompts: all that a job needs.
    pub(crate) fn files(self) -> Files {
        match self {
            Self::TinyUnet => TINY_UNET,
            Self::TinyPixart => TINY_PIXART,
        }
    }

    /// Makes `folder` hold the teacher and nothing else. One that is whole stays as it is; one that isn't is replaced.
    pub(crate) fn extract(self, folder: &Path) -> Result<(), Error> {
        if self.is_whole(folder) {
            return Ok(());
        }
        let part = folder.with_file_name(format!("{}.part-{}", self.name(), process::id()));
        write(&part, self.files())?;
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(Error::file("remove", folder))?;
        }
        fs::rename(&part, folder).map_err(Error::file("create", folder))
    }

    fn is_whole(self, folder: &Path) -> bool {
        self.files().iter().all(|(path, content)| fs::read(folder.join(path)).is_ok_and(|found| found == *content))
    }
}

fn write(folder: &Path, files: Files) -> Result<(), Error> {
    for (path, content) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        let written = fs::File::create(&path).and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
        written.map_err(Error::file("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_teacher_is_replaced_and_a_whole_one_kept() {
        for (teacher, config) in
            [(Teacher::TinyUnet, "unet/config.json"), (Teacher::TinyPixart, "transformer/config.json")]
        {
            let parent = tempfile::tempdir().expect("a folder");
            let folder = parent.path().join(teacher.name());
            teacher.extract(&folder).expect("extracted");
            let config = folder.join(config);
            let written = fs::metadata(&config).and_then(|meta| meta.modified()).expect("a time");
            teacher.extract(&folder).expect("kept");
            assert_eq!(fs::metadata(&config).and_then(|meta| meta.modified()).expect("a time"), written);
            fs::write(&config, b"{}").expect("damaged");
            teacher.extract(&folder).expect("replaced");
            assert!(teacher.is_whole(&folder));
            assert_eq!(fs::read_dir(parent.path()).expect("listed").count(), 1);
        }
    }
}
