//! What deltaconv's processes agree on: messages, ids, object keys, and the formats of shards, teachers and blocks.

pub mod block;
pub mod bounds;
mod brief;
pub mod buckets;
pub mod code;
mod codec;
pub mod description;
mod device;
pub mod digest;
pub mod draw;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod header;
pub mod ids;
pub mod images;
pub mod keys;
pub mod log;
pub mod objects;
pub mod pipeline;
pub mod prompts;
pub mod protocol;
mod recipe;
mod report;
pub mod safetensors;
pub mod shard;
pub mod teacher;
pub mod tls;
mod utc;
pub mod weights;

pub use brief::Brief;
pub use utc::utc;

/// The messages of package `deltaconv.v1`, generated from `proto/deltaconv/v1/*.proto`, where they are documented.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("deltaconv.v1");
}
