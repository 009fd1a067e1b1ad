//! The shards that stand of a capture task. There are as many as tasks times layers, so they are kept small: their keys follow
//! from the task, the layer and the attempt.

use std::sync::Arc;

use deltaconv_proto::ids::AttemptId;
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::{digest, v1};

use super::placement::Piece;
use super::{Kind, Task};

/// Bytes of a digest.
const DIGEST: usize = 32;

/// Shards, each of another layer, by the layer's position in the job's plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Shards {
    shards: Box<[Shard]>,
    /// Who wrote them: one attempt, unless some were written again.
    attempts: Vec<AttemptId>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Shard {
    layer: u16,
    /// Its position in [`Shards::attempts`].
    attempt: u16,
    size: u64,
    digest: [u8; DIGEST],
}

impl Shards {
    /// Whether none stands.
    pub(super) fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// The bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.size))
    }

    /// Whether the attempt wrote one of them.
    pub(super) fn is_of(&self, attempt: &AttemptId) -> bool {
        let position = self.attempts.iter().position(|one| one == attempt);
        position.is_some_and(|position| self.shards.iter().any(|shard| usize::from(shard.attempt) == position))
    }

    /// Whether that of the layer stands.
    pub(super) fn has(&self, layer: usize) -> bool {
        self.of(layer).is_some()
    }

    /// That of the layer, as nodes hold it.
    pub(super) fn piece(&self, layer: usize) -> Option<Piece> {
        let shard = self.of(layer)?;
        let [a, b, c, d, e, f, g, h, ..] = shard.digest;
        Some(Piece { prefix: u64::from_be_bytes([a, b, c, d, e, f, g, h]), bytes: shard.size })
    }

    /// Takes that of the layer away.
    pub(super) fn remove(&mut self, layer: usize) {
        self.shards = self.shards.iter().filter(|shard| usize::from(shard.layer) != layer).copied().collect();
    }

    /// The durable part of them.
    pub(super) fn record(&self) -> Vec<v1::WrittenShards> {
        let of_attempt = |(position, attempt): (usize, &AttemptId)| {
            let mut written = v1::WrittenShards { attempt_id: attempt.to_string(), ..v1::WrittenShards::default() };
            for shard in self.shards.iter().filter(|shard| usize::from(shard.attempt) == position) {
                written.layers.push(shard.layer.into());
                written.sizes.push(shard.size);
                written.digests.extend_from_slice(&shard.digest);
            }
            (!written.layers.is_empty()).then_some(written)
        };
        self.attempts.iter().enumerate().filter_map(of_attempt).collect()
    }

    /// Takes what was recorded, of a job with as many `layers`. `None` if it isn't what [`Self::record`] gave.
    pub(super) fn restore(&mut self, written: Vec<v1::WrittenShards>, layers: usize) -> Option<()> {
        let mut shards = Vec::new();
        for v1::WrittenShards { attempt_id, layers: of, sizes, digests } in written {
            let attempt = u16::try_from(self.attempts.len()).ok()?;
            self.attempts.push(AttemptId::new(attempt_id).ok()?);
            let (digests, rest) = digests.as_chunks::<DIGEST>();
            if !rest.is_empty() || digests.len() != of.len() || sizes.len() != of.len() {
                return None;
            }
            for ((layer, size), digest) in of.into_iter().zip(sizes).zip(digests) {
                let layer = u16::try_from(layer).ok().filter(|layer| usize::from(*layer) < layers)?;
                shards.push(Shard { layer, attempt, size, digest: *digest });
            }
        }
        self.put(shards)
    }

    fn of(&self, layer: usize) -> Option<&Shard> {
        let position = self.shards.binary_search_by_key(&layer, |shard| usize::from(shard.layer)).ok()?;
        Some(&self.shards[position])
    }

    /// Takes new ones in the place of those of the same layers. `None` if two of them are of one layer.
    fn put(&mut self, mut new: Vec<Shard>) -> Option<()> {
        let is_new = |shard: &&Shard| !new.iter().any(|one| one.layer == shard.layer);
        let standing: Vec<Shard> = self.shards.iter().filter(is_new).copied().collect();
        new.extend(standing);
        new.sort_unstable_by_key(|shard| shard.layer);
        if new.windows(2).any(|two| two[0].layer == two[1].layer) {
            return None;
        }
        self.shards = new.into();
        Some(())
    }
}

impl Task {
    /// The shard of the layer at this position, named so, if it stands.
    pub fn shard(&self, layer: usize, name: &str) -> Option<v1::ObjectRef> {
        let shard = self.shards.of(layer)?;
        let (round, range) = self.captured()?;
        let key = keys::shard(round, name, range, self.shards.attempts.get(usize::from(shard.attempt))?);
        Some(v1::ObjectRef { key, size: shard.size, digest: digest::text(&shard.digest) })
    }

    /// Takes shards that were accepted, of layers among `names`. Gives the key of one that isn't as attempts write them.
    pub(super) fn take_shards(&mut self, shards: Vec<v1::ShardRef>, names: &[Arc<str>]) -> Result<(), String> {
        let mut taken = Vec::with_capacity(shards.len());
        for v1::ShardRef { layer, object } in shards {
            let Some(object) = object else { continue };
            let Some(shard) = self.understood(&layer, &object, names) else { return Err(object.key) };
            // The last one counts.
            taken.retain(|before: &Shard| before.layer != shard.layer);
            taken.push(shard);
        }
        self.shards.put(taken).ok_or_else(String::new)
    }

    fn understood(&mut self, layer: &str, object: &v1::ObjectRef, names: &[Arc<str>]) -> Option<Shard> {
        let (round, range) = self.captured()?;
        let position = names.iter().position(|name| **name == *layer)?;
        let digest = digest::bytes(&object.digest)?;
        let is_its = |attempt: &AttemptId| keys::shard(round, layer, range, attempt) == object.key;
        // Mostly one attempt wrote them all.
        let attempt = match self.shards.attempts.iter().rposition(is_its) {
            Some(known) => known,
            None => {
                let attempt = Written::parse(&object.key).map(|written| written.attempt).filter(is_its)?;
                self.shards.attempts.push(attempt);
                self.shards.attempts.len() - 1
            }
        };
        Some(Shard { layer: position.try_into().ok()?, attempt: attempt.try_into().ok()?, size: object.size, digest })
    }

    fn captured(&self) -> Option<(u32, &v1::SampleRange)> {
        match &self.kind {
            Kind::Capture { round, range } => Some((*round, range)),
            Kind::Synthesise { .. } | Kind::Distill { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
        }
    }
}
