//! Jobs on copies of the shipped teacher, for tests to break.

use std::path::{Path, PathBuf};

use deltaconv_proto::v1::{Data, Evaluation, JobSpec, Recipe};
use tempfile::TempDir;
use url::Url;

/// A folder with `teacher`, which is also the data's, and `job`, the prefix.
pub(crate) struct Job {
    pub(crate) folder: TempDir,
    pub(crate) spec: JobSpec,
}

impl Job {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/teachers/tiny-unet"), &folder.path().join("teacher"));
        let url = |name| Url::from_file_path(folder.path().join(name)).expect("absolute").to_string();
        let spec = JobSpec {
            name: "tiny-unet".to_owned(),
            teacher_url: url("teacher"),
            output_url: url("job"),
            data: Some(Data { url: url("teacher"), seed: 7, held_out_latents: 64, synthesis: None, images: None }),
            recipe: Some(Recipe {
                samples: 100,
                held_out_samples: 20,
                shard_samples: 32,
                steps: 600,
                batch: 16,
                learning_rate: 2e-3,
                warmup_steps: 20,
                weight_decay: 0.01,
                clip_norm: 1.0,
                ema_decay: 0.99,
                empty_prompt_fraction: 0.15,
                inter_ratio: 0.5,
                scales: vec![1.0, 0.5],
                kernel_sizes: [("mid_block.attentions.0.transformer_blocks.0".to_owned(), 5)].into(),
                keep: vec![],
                store: None,
                rounds: 0,
                round_steps: 0,
                teacher_share: 0.0,
                schedule: None,
                keep_costliest: None,
                finetune: None,
                start: None,
                solve: None,
                budget: None,
                widen: None,
                loss: None,
                huber_delta: None,
            }),
            evaluation: Some(Evaluation { samples: 64, prompts: 8, ddim_steps: 20, guidance: 2.0 }),
            ..JobSpec::default()
        };
        Self { folder, spec }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn recipe(&mut self) -> &mut Recipe {
        self.spec.recipe.as_mut().expect("a recipe")
    }

    pub(crate) fn evaluation(&mut self) -> &mut Evaluation {
        self.spec.evaluation.as_mut().expect("an evaluation")
    }

    /// Replaces a file of the teacher by what `change` makes of it.
    pub(crate) fn rewrite(&self, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let path = self.path("teacher").join(file);
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(path, change(bytes)).expect("writes");
    }

    /// As [`Self::rewrite`], of a piece of JSON text.
    pub(crate) fn replace(&self, file: &str, from: &str, to: &str) {
        self.rewrite(file, |bytes| {
            let text = String::from_utf8(bytes).expect("text");
            assert!(text.contains(from), "{file} has no {from}");
            text.replace(from, to).into_bytes()
        });
    }

    /// Replaces text in the header of a safetensors file of the teacher, and puts its length right.
    pub(crate) fn replace_in_header(&self, file: &str, from: &str, to: &str) {
        self.rewrite(file, |bytes| {
            let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
            let (json, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let json = std::str::from_utf8(json).expect("text");
            assert!(json.contains(from), "the header of {file} has no {from}");
            let json = json.replacen(from, to, 1);
            [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
        });
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("copies")),
        }
    }
}
