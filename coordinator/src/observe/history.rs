//! What happened to jobs that are over, beside their reports: the state keeps the last events of all jobs together, and those of a
//! job must be there for as long as its report is.

use deltaconv_proto::ids::JobId;
use deltaconv_proto::objects::{Error, Objects};
use deltaconv_proto::{keys, v1};

/// The largest that is read: as many events as a state keeps, of the longest message and the longest ids.
const MAX_BYTES: u64 = 32 << 20;

/// Writes a job's events, a line of JSON each.
pub(crate) async fn write(objects: &Objects, job: &JobId, events: &[v1::Event]) -> Result<(), Error> {
    // Events are text and numbers, which always are JSON.
    let lines = events.iter().filter_map(|event| serde_json::to_string(event).ok());
    let text: String = lines.map(|line| line + "\n").collect();
    objects.put(&keys::events(job), text).await.map(|_| ())
}

/// What was written; nothing where nothing was. A line that is no event is passed over.
pub(crate) async fn read(objects: &Objects, job: &JobId) -> Result<Vec<v1::Event>, Error> {
    let bytes = match objects.get(&keys::events(job), MAX_BYTES).await {
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        read => read?,
    };
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Both, each event once and in order.
pub(crate) fn merged(stored: Vec<v1::Event>, kept: Vec<v1::Event>) -> Vec<v1::Event> {
    let mut events = stored;
    events.extend(kept);
    events.sort_by_key(|event| event.sequence);
    events.dedup_by_key(|event| event.sequence);
    events
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deltaconv_proto::objects::Objects;
    use object_store::memory::InMemory;

    use super::*;

    fn event(sequence: u64) -> v1::Event {
        v1::Event { sequence, message: format!("the {sequence}th\nof them"), ..v1::Event::default() }
    }

    #[tokio::test]
    async fn what_the_state_has_forgotten_is_there_with_the_report() {
        let objects = Objects::new("memory:", Arc::new(InMemory::new()));
        let job = JobId::new("tiny-1").expect("valid");
        assert_eq!(read(&objects, &job).await.expect("read"), []);
        let events: Vec<v1::Event> = (3..7).map(event).collect();
        write(&objects, &job, &events).await.expect("written");
        let stored = read(&objects, &job).await.expect("read");
        assert_eq!(stored, events);
        let merged = merged(stored, vec![event(6), event(9)]);
        assert_eq!(merged.iter().map(|event| event.sequence).collect::<Vec<_>>(), [3, 4, 5, 6, 9]);
    }
}
