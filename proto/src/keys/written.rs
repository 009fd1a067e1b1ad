//! Keys read backwards: what an attempt wrote, and which attempt it was.

use super::{FINETUNE, LOG, LOGS, START, is_plain, range};
use crate::ids::AttemptId;
use crate::v1::SampleRange;

/// What an object is that an attempt wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`super::latents`]
    Latents,
    /// [`super::shard`]
    Activations,
    /// [`super::block`], [`super::finetuned`]
    Block,
    /// [`super::start`]
    Start,
    /// [`super::checkpoint`]
    Checkpoint,
    /// [`super::evaluation`]
    Evaluation,
    /// [`super::log`]
    Log,
}

/// What the key of an attempt's object tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What the object is.
    pub kind: Kind,
    /// The task's name within its job, as [`crate::ids::TaskId::local`] has it.
    pub task: String,
    /// The attempt that wrote it.
    pub attempt: AttemptId,
}

impl Written {
    /// Reads a key. `None` for every key that this module would not have written: who removes objects by what this says
    /// must not touch what somebody else put beside them.
    pub fn parse(key: &str) -> Option<Self> {
        let (folder, file) = key.rsplit_once('/')?;
        if let Some(task) = folder.strip_prefix(LOGS).and_then(|below| below.strip_prefix('/')) {
            let attempt = attempt_id(file.strip_suffix(LOG)?)?;
            return is_task(task).then(|| Self { kind: Kind::Log, task: task.to_owned(), attempt });
        }
        let name = file.strip_suffix(".safetensors")?;
        let folders: Vec<&str> = folder.split('/').collect();
        let (kind, task, attempt) = match folders[..] {
            ["rounds", "0", "latents"] => {
                let (range, attempt) = split_range(name)?;
                (Kind::Latents, format!("synthesise/{range}"), attempt)
            }
            ["rounds", round, "activations", layer] if is_round(round) && is_name(layer) => {
                let (range, attempt) = split_range(name)?;
                (Kind::Activations, format!("r{round}/capture/{range}"), attempt)
            }
            ["rounds", round, "blocks", layer] if is_round(round) && is_name(layer) => {
                let of_start = name.strip_suffix(START).filter(|name| round == "0" && attempt_id(name).is_some());
                let (kind, attempt) = of_start.map_or((Kind::Block, name), |attempt| (Kind::Start, attempt));
                (kind, format!("r{round}/distill/{layer}"), attempt)
            }
            ["checkpoints", round, "distill", layer] if is_name(layer) => {
                round.strip_prefix('r').filter(|round| is_round(round))?;
                (Kind::Checkpoint, format!("{round}/distill/{layer}"), split_step(name)?)
            }
            [FINETUNE, "blocks", layer] if is_name(layer) => (Kind::Block, FINETUNE.to_owned(), name),
            ["checkpoints", FINETUNE] => (Kind::Checkpoint, FINETUNE.to_owned(), split_step(name)?),
            ["evaluate", "noise" | "pictures", range] if is_range(range) => (Kind::Evaluation, folder.to_owned(), name),
            _ => return None,
        };
        Some(Self { kind, task, attempt: attempt_id(attempt)? })
    }
}

/// Whether tasks are called so within their job.
fn is_task(local: &str) -> bool {
    let parts: Vec<&str> = local.split('/').collect();
    let is_of_round = |round: &str| round.strip_prefix('r').is_some_and(is_round);
    match parts[..] {
        ["synthesise", range] | ["evaluate", "noise" | "pictures", range] => is_range(range),
        [round, "capture", range] => is_of_round(round) && is_range(range),
        [round, "distill", layer] => is_of_round(round) && is_name(layer),
        [name] => name == FINETUNE,
        _ => false,
    }
}

/// Whether a layer can be called so: its name is a part of keys and of ids.
fn is_name(layer: &str) -> bool {
    !matches!(layer, "" | "." | "..") && is_plain(layer)
}

/// A range and what follows it.
fn split_range(name: &str) -> Option<(&str, &str)> {
    let (end_of_start, _) = name.match_indices('-').nth(1)?;
    let (range, attempt) = (&name[..end_of_start], &name[end_of_start + 1..]);
    is_range(range).then_some((range, attempt))
}

/// The attempt before a step.
fn split_step(name: &str) -> Option<&str> {
    let (attempt, step) = name.rsplit_once('-')?;
    step.parse().ok().filter(|number: &u64| format!("{number:08}") == step)?;
    Some(attempt)
}

fn is_range(text: &str) -> bool {
    let bounds = text.split_once('-').and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    bounds.is_some_and(|(start, end)| start < end && range(&SampleRange { start, end }) == text)
}

fn is_round(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|round| round.to_string() == text)
}

/// Attempts are called a<number>-<epoch>-<coordinator>.
fn attempt_id(text: &str) -> Option<AttemptId> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let mut parts = text.splitn(3, '-');
    let is_attempt = parts.next()?.strip_prefix('a').is_some_and(is_number)
        && parts.next().is_some_and(is_number)
        && parts.next().is_some_and(|coordinator| !coordinator.is_empty());
    if is_attempt { AttemptId::new(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::{block, checkpoint, evaluation, finetuned, latents, log, shard, start};
    use super::*;
    use crate::ids::{JobId, TaskId};

    #[test]
    fn every_key_that_an_attempt_writes_is_read_back() {
        let job = JobId::new("tiny-1").expect("valid");
        let task = |local: &str| TaskId::of(&job, local).expect("valid");
        let attempt = AttemptId::new("a12-345-0a1b2c3d").expect("valid");
        let samples = SampleRange { start: 64, end: 128 };
        let layer = "up_blocks.1.attentions.0.transformer_blocks.0";
        let first = format!("r0/distill/{layer}");
        let (distill, noise) = (format!("r3/distill/{layer}"), "evaluate/noise/00000064-00000128");
        for (key, kind, of) in [
            (latents(&samples, &attempt), Kind::Latents, "synthesise/00000064-00000128"),
            (shard(3, layer, &samples, &attempt), Kind::Activations, "r3/capture/00000064-00000128"),
            (block(3, layer, &attempt), Kind::Block, distill.as_str()),
            (start(layer, &attempt), Kind::Start, first.as_str()),
            (checkpoint(&task(&distill), &attempt, 17), Kind::Checkpoint, &distill),
            (checkpoint(&task(&distill), &attempt, 123_456_789_012), Kind::Checkpoint, &distill),
            (finetuned(layer, &attempt), Kind::Block, "finetune"),
            (checkpoint(&task("finetune"), &attempt, 17), Kind::Checkpoint, "finetune"),
            (evaluation(&task(noise), &attempt), Kind::Evaluation, noise),
            (log(&task(noise), &attempt), Kind::Log, noise),
            (log(&task(&distill), &attempt), Kind::Log, &distill),
            (log(&task("finetune"), &attempt), Kind::Log, "finetune"),
        ] {
            let expected = Written { kind, task: of.to_owned(), attempt: attempt.clone() };
            assert_eq!(Written::parse(&key), Some(expected), "{key}");
        }
    }

    #[test]
    fn what_anybody_else_wrote_is_nobodys() {
        for key in [
            "spec.json",
            "output/unet/diffusion_pytorch_model.safetensors",
            "output/blocks.safetensors",
            "report/report.json",
            "thesis.tex",
            "rounds/0/activations/mid/00000000-00000064-a1-2-x.safetensors.bak",
            "rounds/0/activations/mid/00000000-00000064-a1-2-x.safetensors#1",
            "rounds/0/activations/mid/00000064-00000000-a1-2-x.safetensors",
            "rounds/0/activations/mid/0-64-a1-2-x.safetensors",
            "rounds/0/activations/mid/00000000-00000064.safetensors",
            "rounds/0/activations/mid/00000000-00000064-mine.safetensors",
            "rounds/0/activations/mid/copy/00000000-00000064-a1-2-x.safetensors",
            "rounds/0/activations/00000000-00000064-a1-2-x.safetensors",
            "rounds/00/blocks/mid/a1-2-x.safetensors",
            "rounds/0/blocks/mid/a1-2-.safetensors",
            "rounds/0/blocks//a1-2-x.safetensors",
            "rounds/0/blocks/../a1-2-x.safetensors",
            "logs/r0/distill/../a1-2-x.jsonl",
            "rounds/0/blocks/m\0d/a1-2-x.safetensors",
            "rounds/1/latents/00000000-00000064-a1-2-x.safetensors",
            "a/rounds/0/blocks/mid/a1-2-x.safetensors",
            "output/rounds/0/blocks/mid/a1-2-x.safetensors",
            "checkpoints/r0/distill/mid/a1-2-x.safetensors",
            "checkpoints/r0/distill/mid/a1-2-x-5.safetensors",
            "checkpoints/0/distill/mid/a1-2-x-00000005.safetensors",
            "finetune/mid/a1-2-x.safetensors",
            "checkpoints/finetune/a1-2-x.safetensors",
            "evaluate/noise/a1-2-x.safetensors",
            "evaluate/speed/00000000-00000064/a1-2-x.safetensors",
            "logs/mine/a1-2-x.jsonl",
            "logs/r0/distill/mid/notes.jsonl",
            "logs/r0/distill/mid/a1-2-x.safetensors",
            "logs/a1-2-x.jsonl",
        ] {
            assert_eq!(Written::parse(key), None, "{key}");
        }
    }
}
