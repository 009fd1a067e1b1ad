//! What attempts say, kept for whoever asks: the last lines of each in memory, and all that is kept once it is over under the
//! job's output.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use deltaconv_proto::ids::{AttemptId, TaskId};
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::{keys, log, v1};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Of an attempt; older ones are forgotten.
const LINES: usize = 2000;
/// Characters of a line.
const LENGTH: usize = 2000;
/// In one report to the coordinator.
const AT_A_TIME: usize = 200;
/// What is said is stored so often while an attempt lasts, for the case that its machine is lost.
const EVERY: Duration = Duration::from_secs(30);

/// The span of an attempt; what is said within it, or within spans below it, is the attempt's.
pub(crate) const SPAN: &str = "attempt";

/// Of all attempts of this process that are not over.
static LOGS: LazyLock<Mutex<BTreeMap<String, Log>>> = LazyLock::new(Mutex::default);

/// The log of one attempt. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// The number of the first that is kept.
    first: u64,
    kept: VecDeque<v1::LogLine>,
    /// How many were there when it was last stored.
    stored: u64,
}

impl Lines {
    fn next(&self) -> u64 {
        self.first + self.kept.len() as u64
    }
}

impl Log {
    /// The log of this attempt, which begins with it where nobody has asked for it before.
    pub(crate) fn of(attempt: &AttemptId) -> Self {
        locked(&LOGS).entry(attempt.to_string()).or_default().clone()
    }

    /// The same of an attempt that isn't over.
    fn find(attempt: &str) -> Option<Self> {
        locked(&LOGS).get(attempt).cloned()
    }

    /// Forgets it.
    pub(crate) fn forget(attempt: &AttemptId) {
        locked(&LOGS).remove(attempt.as_str());
    }

    fn push(&self, line: v1::LogLine) {
        let mut lines = locked(&self.0);
        if lines.kept.len() == LINES {
            lines.kept.pop_front();
            lines.first += 1;
        }
        lines.kept.push_back(line);
    }

    /// The lines from number `first` on, as many as go into a report.
    pub(crate) fn piece(&self, attempt_id: &str, first: u64) -> v1::LogPiece {
        let lines = locked(&self.0);
        let first = first.max(lines.first);
        let skipped = (first - lines.first) as usize;
        let piece = lines.kept.iter().skip(skipped).take(AT_A_TIME).cloned().collect();
        v1::LogPiece { attempt_id: attempt_id.to_owned(), first, lines: piece }
    }

    /// Writes what is kept under the job's output, if something was said since it was last written.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) async fn store(
        &self,
        objects: &Objects,
        task: &TaskId,
        attempt: &AttemptId,
    ) -> Result<(), objects::Error> {
        let (text, next) = {
            let lines = locked(&self.0);
            if lines.next() == lines.stored {
                return Ok(());
            }
            (log::write(lines.first, &lines.kept), lines.next())
        };
        objects.put(&keys::log(task, attempt), text).await?;
        let mut lines = locked(&self.0);
        lines.stored = lines.stored.max(next);
        Ok(())
    }

    /// Stores it now and then until it is dropped. Once it fails it is left at that: the end tries again.
    pub(crate) async fn keep(self, objects: Objects, task: TaskId, attempt: AttemptId) {
        loop {
            tokio::time::sleep(EVERY).await;
            if let Err(error) = self.store(&objects, &task, &attempt).await {
                tracing::debug!(%task, %attempt, %error, "the log can't be stored");
                return;
            }
        }
    }
}

/// What there is of the logs that are wanted.
pub(crate) fn pieces(wanted: &[v1::LogWanted]) -> Vec<v1::LogPiece> {
    let piece = |wanted: &v1::LogWanted| {
        let piece = Log::find(&wanted.attempt_id)?.piece(&wanted.attempt_id, wanted.first);
        (!piece.lines.is_empty()).then_some(piece)
    };
    wanted.iter().filter_map(piece).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives what is said within the span of an attempt to the attempt's log. To be registered by a process that has a worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttemptLogs;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for AttemptLogs {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() != SPAN {
            return;
        }
        let mut field = OneField { name: SPAN, value: String::new() };
        attributes.record(&mut field);
        let Some(log) = Log::find(&field.value) else { return };
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(log);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(scope) = context.event_scope(event) else { return };
        let log = scope.into_iter().find_map(|span| span.extensions().get::<Log>().cloned());
        let Some(log) = log else { return };
        let mut text = Text::default();
        event.record(&mut text);
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let message = format!("{}{}", text.message, text.fields);
        log.push(v1::LogLine {
            unix_ms: unix.as_millis() as u64,
            level: event.metadata().level().as_str().to_ascii_lowercase(),
            message: message.trim_start().chars().take(LENGTH).collect(),
        });
    }
}

/// The value of one field.
struct OneField {
    name: &'static str,
    value: String,
}

impl Visit for OneField {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.name {
            self.value = format!("{value:?}");
        }
    }
}

/// An event in a line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Whose log it is.
            "task" | "attempt" => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn said(attempt: &AttemptId, first: u64) -> Vec<(u64, String)> {
        let piece = Log::of(attempt).piece(attempt.as_str(), first);
        (piece.first..).zip(piece.lines).map(|(number, line)| (number, line.message)).collect()
    }

    #[test]
    fn an_attempts_log_has_what_is_said_in_its_span_and_nothing_else() {
        let [one, other] = ["a1-1-logs", "a2-2-logs"].map(|id| AttemptId::new(id).expect("valid"));
        for attempt in [&one, &other] {
            Log::of(attempt);
        }
        tracing::subscriber::with_default(tracing_subscriber::registry().with(AttemptLogs), || {
            tracing::info!("before");
            tracing::info_span!(SPAN, attempt = %one).in_scope(|| {
                tracing::info!(step = 3, task = "t", "first");
                tracing::debug_span!("inner").in_scope(|| tracing::warn!(reason = "disk", "second"));
            });
            tracing::info_span!(SPAN, attempt = %other).in_scope(|| tracing::info!("third"));
            tracing::info!("after");
        });
        let lines = [(0, "first step=3".to_owned()), (1, "second reason=\"disk\"".to_owned())];
        assert_eq!(said(&one, 0), lines);
        assert_eq!(said(&one, 1), lines[1..]);
        assert_eq!(said(&one, 2), []);
        assert_eq!(said(&other, 0), [(0, "third".to_owned())]);
        Log::forget(&one);
        assert!(Log::find(one.as_str()).is_none());
    }

    #[test]
    fn a_log_is_bounded_and_its_lines_keep_their_numbers() {
        let log = Log::default();
        for number in 0..LINES + 10 {
            log.push(v1::LogLine { message: number.to_string(), ..v1::LogLine::default() });
        }
        let piece = log.piece("a", 0);
        assert_eq!((piece.first, piece.lines.len()), (10, AT_A_TIME));
        assert_eq!(piece.lines[0].message, "10");
        let last = log.piece("a", LINES as u64 + 9);
        assert_eq!((last.first, last.lines[0].message.as_str()), (LINES as u64 + 9, "2009"));
    }
}
