//! The shipped teacher, carried in the executable so that the demo works from anywhere.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process;

use crate::error::Error;

/// The name of the teacher and of its folder.
pub(super) const NAME: &str = "tiny-unet";

macro_rules! shipped {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../teachers/tiny-unet/", $path)))),*]
    };
}

/// Every file of the teacher: its path in the folder and its content.
const FILES: &[(&str, &[u8])] = shipped![
    "latents.safetensors",
    "prompt_embeddings.safetensors",
    "prompts.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

/// Makes `folder` hold the teacher and nothing else. One that is whole stays as it is; one that isn't is replaced.
pub(super) fn extract(folder: &Path) -> Result<(), Error> {
    if is_whole(folder) {
        return Ok(());
    }
    let part = folder.with_file_name(format!("{NAME}.part-{}", process::id()));
    write(&part)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::file("remove", folder))?;
    }
    fs::rename(&part, folder).map_err(Error::file("create", folder))
}

fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|(path, content)| fs::read(folder.join(path)).is_ok_and(|found| found == *content))
}

fn write(folder: &Path) -> Result<(), Error> {
    for (path, content) in FILES {
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
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join(NAME);
        extract(&folder).expect("extracted");
        let config = folder.join("unet/config.json");
        let written = fs::metadata(&config).and_then(|meta| meta.modified()).expect("a time");
        extract(&folder).expect("kept");
        assert_eq!(fs::metadata(&config).and_then(|meta| meta.modified()).expect("a time"), written);
        fs::write(&config, b"{}").expect("damaged");
        extract(&folder).expect("replaced");
        assert!(is_whole(&folder));
        assert_eq!(fs::read_dir(parent.path()).expect("listed").count(), 1);
    }
}
