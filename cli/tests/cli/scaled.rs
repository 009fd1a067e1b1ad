//! One small job, as a demo and as a file, and what it gives when nothing disturbs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::process::{deltaconv, said};
use crate::service::{CHECKPOINT_INTERVAL, LEASE_TTL};

const SAMPLES: u32 = 64;
const HELD_OUT_SAMPLES: u32 = 16;
const SHARD_SAMPLES: u32 = 16;
const STEPS: u32 = 40;
const WARMUP_STEPS: u32 = 5;
const EVALUATE_SAMPLES: u32 = 16;
const EVALUATE_PROMPTS: u32 = 2;
const DDIM_STEPS: u32 = 2;

/// The shipped teacher.
pub(crate) fn teacher() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("teachers/tiny-unet")
}

/// The job as a demo.
pub(crate) fn demo(out: &Path, workers: u32) -> Command {
    demo_of(out, workers, STEPS)
}

/// The same with another number of steps.
pub(crate) fn demo_of(out: &Path, workers: u32, steps: u32) -> Command {
    let mut command = deltaconv();
    command.args(["demo", "--workers", &workers.to_string(), "-o", "json"]).arg("--out").arg(out);
    command.args(["--lease-ttl", LEASE_TTL, "--checkpoint-interval", CHECKPOINT_INTERVAL]);
    for (flag, value) in [
        ("--samples", SAMPLES),
        ("--held-out-samples", HELD_OUT_SAMPLES),
        ("--shard-samples", SHARD_SAMPLES),
        ("--steps", steps),
        ("--warmup-steps", WARMUP_STEPS),
        ("--evaluate-samples", EVALUATE_SAMPLES),
        ("--evaluate-prompts", EVALUATE_PROMPTS),
        ("--ddim-steps", DDIM_STEPS),
    ] {
        command.args([flag, &value.to_string()]);
    }
    command
}

/// The job as a file beside its output.
pub(crate) fn job_file(folder: &Path, teacher: &Path, output: &Path) -> PathBuf {
    job_file_of(folder, teacher, output, STEPS)
}

/// The same with another number of steps.
pub(crate) fn job_file_of(folder: &Path, teacher: &Path, output: &Path, steps: u32) -> PathBuf {
    let path = folder.join(format!("{}.toml", output.file_name().expect("a name").to_string_lossy()));
    let text = format!(
        "name = 'tiny'\nteacher = '{}'\noutput = '{}'\n\
         [recipe]\npreset = 'fast'\nsamples = {SAMPLES}\nheld_out_samples = {HELD_OUT_SAMPLES}\nshard_samples = {SHARD_SAMPLES}\n\
         steps = {steps}\nwarmup_steps = {WARMUP_STEPS}\n\
         [evaluation]\nsamples = {EVALUATE_SAMPLES}\nprompts = {EVALUATE_PROMPTS}\nddim_steps = {DDIM_STEPS}\n",
        teacher.display(),
        output.display(),
    );
    std::fs::write(&path, text).expect("written");
    path
}

/// What the job gives when nothing disturbs it, from a demo with two workers.
pub(crate) struct Quiet {
    pub(crate) out: PathBuf,
    pub(crate) told: Value,
    pub(crate) digest: String,
    // Removed with the process.
    _folder: tempfile::TempDir,
}

/// Runs the undisturbed demo once for all tests.
pub(crate) fn quiet() -> &'static Quiet {
    static QUIET: OnceLock<Quiet> = OnceLock::new();
    QUIET.get_or_init(|| quiet_of(STEPS))
}

/// Runs the same with another number of steps.
pub(crate) fn quiet_of(steps: u32) -> Quiet {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("quiet");
    let output = demo_of(&out, 2, steps).output().expect("runs");
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let digest = told["figures"]["blocks_digest"].as_str().expect("a digest").to_owned();
    Quiet { out, told, digest, _folder: folder }
}
