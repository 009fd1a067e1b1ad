//! The threads that bring shards and have the next batches ready.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::arrivals::Receiver;
use super::memory::Piece;
use super::{Incoming, Samples};
use crate::task::{Error, Supervision};

/// Batches that wait to be taken.
const AHEAD: usize = 2;
/// How long a wait for a batch may be before it is looked whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(100);

/// Samples of one bucket.
#[derive(Debug)]
pub(crate) struct Batch {
    /// [B, H, W].
    pub(crate) size: [usize; 3],
    /// [B, H, W, C], in pieces.
    pub(crate) input: Vec<Piece>,
    /// As the input.
    pub(crate) output: Vec<Piece>,
    /// What differences are multiplied by, [B, C], in pieces; empty where samples have none.
    pub(crate) weights: Vec<Piece>,
}

/// Batches in their order, as long as they are taken.
#[derive(Debug)]
pub(crate) struct Feed {
    batches: Option<mpsc::Receiver<Result<Batch, Error>>>,
    samples: Arc<Samples>,
    threads: Vec<JoinHandle<()>>,
}

impl Feed {
    /// Has `receiver` bring the shards, and batches of them ready in this order.
    pub(super) fn new(
        samples: &Arc<Samples>,
        order: impl Iterator<Item = Vec<usize>> + Send + 'static,
        receiver: Option<Receiver>,
        awaited: Vec<Incoming>,
    ) -> Self {
        let (ready, batches) = sync_channel(AHEAD);
        let receiving = receiver.map(|receiver| std::thread::spawn(move || receiver.run(&awaited)));
        let collecting = std::thread::spawn({
            let samples = samples.clone();
            move || {
                for rows in order {
                    // None: nobody waits for it any more.
                    let Some(batch) = samples.batch(&rows).transpose() else { return };
                    let failed = batch.is_err();
                    if ready.send(batch).is_err() || failed {
                        return;
                    }
                }
            }
        });
        let threads = receiving.into_iter().chain([collecting]).collect();
        Self { batches: Some(batches), samples: samples.clone(), threads }
    }

    /// The next batch; `None` where the attempt is to stop.
    pub(crate) fn next(&mut self, supervision: &Supervision) -> Result<Option<Batch>, Error> {
        while supervision.stopped().is_none() {
            match self.batches.as_ref().map(|batches| batches.recv_timeout(PATIENCE)) {
                Some(Ok(batch)) => return batch.map(Some),
                Some(Err(RecvTimeoutError::Timeout)) => {}
                Some(Err(RecvTimeoutError::Disconnected)) | None => return Err(Error::Incomplete("samples")),
            }
        }
        Ok(None)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.samples.arrivals.end();
        self.batches = None;
        for thread in self.threads.drain(..) {
            // It ended by a panic, or it ends now.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use deltaconv_proto::draw::Batches;
    use deltaconv_proto::v1::LayerPlan;

    use super::super::{LayerData, Place, Rows};
    use super::*;
    use crate::task::Stop;

    #[test]
    fn batches_come_as_soon_as_their_shards_have() {
        let layer = LayerPlan { height: 2, width: 2, channels: 4, ..LayerPlan::default() };
        let (data, mut placed) = LayerData::in_shards(&layer, &[3, 3, 2, 1]);
        let supervision = Supervision::default();
        let order = Batches::new(0, data.training_buckets().clone(), 2, 0);
        let mut feed = Feed::new(&data.samples, order, None, Vec::new());
        let mut put = |shard: usize| {
            let placed = placed[shard].take().expect("not yet put");
            assert!(matches!(placed.place, Place::Near { .. }));
            data.samples.arrivals.put(shard, placed);
        };
        let first_numbers = |feed: &mut Feed| {
            let batch = feed.next(&supervision).expect("no failure").expect("not stopped");
            let mut rows = Rows::default();
            batch.to_f32(&mut rows);
            assert_eq!(batch.size, [2, 2, 2]);
            [rows.input[0], rows.input[16]]
        };
        // Of sample i all numbers are i; the first epoch has them in order.
        put(0);
        assert_eq!(first_numbers(&mut feed), [0.0, 1.0]);
        put(1);
        assert_eq!(first_numbers(&mut feed), [2.0, 3.0]);
        assert_eq!(first_numbers(&mut feed), [4.0, 5.0]);
        // Nothing comes of the third shard, and somebody asks to stop.
        supervision.stop(Stop::Release);
        assert!(feed.next(&supervision).expect("no failure").is_none());
    }
}
