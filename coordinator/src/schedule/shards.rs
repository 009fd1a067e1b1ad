//! The shards that stand of a capture task. There are as many as tasks times layers, so they are kept small: their keys follow
//! from the task, the layer and the attempt.

use std::sync::Arc;

use deltaconv_proto::ids::AttemptId;
use deltaconv_proto::keys::{self, Written};
use deltaconv_proto::{digest, v1};

use super::placement::Piece;
use super::{Kind, Task};

/// Shards, each of another layer, by the layer's name.
#[derive(Clone, Debug, Default)]
pub(super) struct Shards(Vec<Shard>);

#[derive(Clone, Debug)]
struct Shard {
    layer: Arc<str>,
    attempt: AttemptId,
    size: u64,
    digest: [u8; 32],
}

impl Shards {
    /// Whether none stands.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, shard| sum.saturating_add(shard.size))
    }

    /// Whether the attempt wrote one of them.
    pub(super) fn is_of(&self, attempt: &AttemptId) -> bool {
        self.0.iter().any(|shard| shard.attempt == *attempt)
    }

    /// Whether that of the layer stands.
    pub(super) fn has(&self, layer: &str) -> bool {
        self.position(layer).is_ok()
    }

    /// That of the layer, as nodes hold it.
    pub(super) fn piece(&self, layer: &str) -> Option<Piece> {
        let shard = &self.0[self.position(layer).ok()?];
        let [a, b, c, d, e, f, g, h, ..] = shard.digest;
        Some(Piece { prefix: u64::from_be_bytes([a, b, c, d, e, f, g, h]), bytes: shard.size })
    }

    /// Takes that of the layer away.
    pub(super) fn remove(&mut self, layer: &str) {
        if let Ok(position) = self.position(layer) {
            self.0.remove(position);
        }
    }

    fn position(&self, layer: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|shard| (*shard.layer).cmp(layer))
    }
}

impl Task {
    /// The layer's shard, if it stands.
    pub fn shard(&self, layer: &str) -> Option<v1::ObjectRef> {
        let shard = &self.shards.0[self.shards.position(layer).ok()?];
        let (round, range) = self.captured()?;
        let key = keys::shard(round, layer, range, &shard.attempt);
        Some(v1::ObjectRef { key, size: shard.size, digest: digest::text(&shard.digest) })
    }

    /// All that stand.
    pub(super) fn shard_refs(&self) -> Vec<v1::ShardRef> {
        let shards = self.shards.0.iter();
        shards.map(|shard| v1::ShardRef { layer: shard.layer.to_string(), object: self.shard(&shard.layer) }).collect()
    }

    /// Takes shards that were accepted, of layers among `names`. Gives the key of one that isn't as attempts write them.
    pub(super) fn take_shards(&mut self, shards: Vec<v1::ShardRef>, names: &[Arc<str>]) -> Result<(), String> {
        for v1::ShardRef { layer, object } in shards {
            let Some(object) = object else { continue };
            let Some(shard) = self.understood(&layer, &object, names) else { return Err(object.key) };
            match self.shards.position(&layer) {
                Ok(position) => self.shards.0[position] = shard,
                Err(position) => self.shards.0.insert(position, shard),
            }
        }
        self.shards.0.shrink_to_fit();
        Ok(())
    }

    fn understood(&self, layer: &str, object: &v1::ObjectRef, names: &[Arc<str>]) -> Option<Shard> {
        let (round, range) = self.captured()?;
        let attempt = Written::parse(&object.key)?.attempt;
        let shard = Shard {
            layer: names.iter().find(|name| ***name == *layer)?.clone(),
            digest: digest::bytes(&object.digest)?,
            size: object.size,
            attempt,
        };
        (keys::shard(round, layer, range, &shard.attempt) == object.key).then_some(shard)
    }

    fn captured(&self) -> Option<(u32, &v1::SampleRange)> {
        match &self.kind {
            Kind::Capture { round, range } => Some((*round, range)),
            Kind::Synthesise { .. } | Kind::Distill { .. } | Kind::Finetune | Kind::Evaluate(_) => None,
        }
    }
}
