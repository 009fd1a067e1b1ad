//! The loop in which the worker says what is and is told what should be.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaconv_proto::v1::{self, attempt_report};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coordinator::{self, Coordinator, Unanswered, reached};
use super::runner::{Attempt, Ended, Outcome, Runner, Stop};
use super::{Error, Leaving};

/// How long the coordinator may hold a call of a worker that has nothing to do.
const HOLD_IDLE: Duration = Duration::from_secs(10);
/// The same while it works: so often it reports progress.
const HOLD_BUSY: Duration = Duration::from_millis(500);
/// Of the grace period, what is left for a leaving worker's last word to the coordinator, and as long again for the process' end;
/// and the most that they need.
const ENDING: f64 = 0.25;
const LONGEST_ENDING: Duration = Duration::from_secs(4);

type AttemptKey = (String, String);

fn key(lease: &v1::Lease) -> AttemptKey {
    (lease.task_id.clone(), lease.attempt_id.clone())
}

/// An attempt that was leased, running or ended.
struct Held<A> {
    lease: v1::Lease,
    attempt: A,
    outcome: Option<Outcome>,
}

impl<A: Attempt> Held<A> {
    /// What there is to say about it.
    fn report(&self) -> v1::AttemptReport {
        let progress = self.attempt.progress();
        let state = match &self.outcome {
            None => attempt_report::State::Running(progress),
            Some(Outcome::Done(done)) => attempt_report::State::Done(done.clone()),
            Some(Outcome::Failed(failure)) => attempt_report::State::Failed(failure.clone()),
            Some(Outcome::Released | Outcome::Dropped) => attempt_report::State::Released(progress),
        };
        v1::AttemptReport { lease: Some(self.lease.clone()), state: Some(state) }
    }
}

/// A worker that has joined.
pub(super) struct Agent<C, R: Runner> {
    coordinator: C,
    joined: v1::JoinResponse,
    runner: R,
    /// In an order that doesn't change from run to run.
    attempts: BTreeMap<AttemptKey, Held<R::Attempt>>,
    outcomes: mpsc::UnboundedSender<(v1::Lease, Outcome)>,
    ended: mpsc::UnboundedReceiver<(v1::Lease, Outcome)>,
    leaving: Leaving,
    /// Since when it holds nothing; none while it does.
    idle_since: Option<Instant>,
    /// When attempts that have not stopped are left, once the worker leaves.
    leave_by: Option<Instant>,
    /// Why the coordinator takes nothing in, as it last said; empty while it does.
    read_only: String,
    /// There is a checkpoint that the coordinator doesn't know of, as far as it has answered.
    has_news: bool,
    /// When the coordinator wants to be called again, if there is nothing new to say before.
    call_after: Option<Instant>,
    /// Logs that somebody follows, as the coordinator last said.
    wanted: Vec<v1::LogWanted>,
    /// What the node held when this worker last had nothing to do.
    cache: v1::NodeCache,
    /// The version of it that the coordinator knows.
    known_cache: u64,
}

enum Event {
    Answer(Result<v1::SyncResponse, Unanswered>),
    Ended(v1::Lease, Outcome),
    News,
    Leave,
    TimeIsUp,
    /// It was given nothing for so long that it leaves by itself.
    Idle,
}

impl<C: Coordinator, R: Runner> Agent<C, R> {
    pub(super) fn new(coordinator: C, runner: R, joined: v1::JoinResponse, leaving: Leaving) -> Self {
        let (outcomes, ended) = mpsc::unbounded_channel();
        Self {
            coordinator,
            joined,
            runner,
            attempts: BTreeMap::new(),
            outcomes,
            ended,
            leaving,
            idle_since: Some(Instant::now()),
            leave_by: None,
            read_only: String::new(),
            has_news: false,
            call_after: None,
            wanted: Vec::new(),
            cache: v1::NodeCache::default(),
            known_cache: 0,
        }
    }

    /// Works until `shutdown`, then hands back what it holds; or until it is idle for too long.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut waits = coordinator::waits(self.coordinator.jitter_seed());
        let mut away = false;
        loop {
            match self.next_event(&shutdown).await {
                Event::Ended(lease, outcome) => self.ended(lease, outcome),
                Event::News => self.has_news = true,
                Event::TimeIsUp => {}
                Event::Leave => {
                    tracing::info!("leaving: attempts are stopped and handed back");
                    self.leave_by = Some(Instant::now() + self.leaving.grace - self.ending());
                    self.stop_all(Stop::Release);
                }
                Event::Idle => {
                    if self.is_let_go(&shutdown).await? {
                        return Ok(());
                    }
                }
                Event::Answer(Ok(response)) => {
                    self.has_news = false;
                    if away {
                        tracing::info!("the coordinator is back");
                        (waits, away) = (coordinator::waits(self.coordinator.jitter_seed()), false);
                    }
                    self.call_after = Some(Instant::now() + Duration::from_millis(response.next_call_after_ms));
                    if !self.take(response, &shutdown).await? {
                        return Ok(());
                    }
                }
                Event::Answer(Err(Unanswered::Away(reason))) => {
                    if !away {
                        tracing::warn!(reason, "the coordinator doesn't answer; going on without");
                        away = true;
                    }
                    self.pause(waits.next().unwrap_or(HOLD_BUSY), &shutdown).await;
                }
                Event::Answer(Err(Unanswered::Refused(error))) => {
                    self.stop_all(Stop::Fenced);
                    return Err(error);
                }
            }
            self.idle_since = match self.attempts.is_empty() {
                true => self.idle_since.or_else(|| Some(Instant::now())),
                false => None,
            };
            let has_left = self.leave_by.is_some_and(|by| self.attempts.is_empty() || Instant::now() >= by);
            if has_left {
                self.say_goodbye().await;
                return Ok(());
            }
        }
    }

    /// Whatever happens first. A call that waits is given up when there is something new to say: the next one says all.
    async fn next_event(&mut self, shutdown: &CancellationToken) -> Event {
        let (leaving, idle_until) = (self.leave_by.is_some(), self.idle_until());
        if let Some(call_after) = self.call_after.take() {
            tokio::select! {
                biased;
                Some((lease, outcome)) = self.ended.recv() => return Event::Ended(lease, outcome),
                () = shutdown.cancelled(), if !leaving => return Event::Leave,
                () = reached(self.leave_by) => return Event::TimeIsUp,
                () = reached(idle_until) => return Event::Idle,
                () = self.runner.news() => self.has_news = true,
                () = tokio::time::sleep_until(call_after) => {}
            }
        }
        if self.attempts.values().all(|held| held.outcome.is_some()) && !leaving {
            // Before it is given work, since what it is given follows from it.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Event::Leave,
                cache = self.runner.cache() => self.cache = cache,
            }
        }
        let (request, leave_by) = (self.request(), self.leave_by);
        tokio::select! {
            biased;
            Some((lease, outcome)) = self.ended.recv() => Event::Ended(lease, outcome),
            () = shutdown.cancelled(), if !leaving => Event::Leave,
            () = reached(leave_by) => Event::TimeIsUp,
            () = reached(idle_until) => Event::Idle,
            () = self.runner.news(), if !self.has_news => Event::News,
            answer = self.coordinator.sync(request) => Event::Answer(answer),
        }
    }

    /// Waits, but not when it is time to leave.
    async fn pause(&self, pause: Duration, shutdown: &CancellationToken) {
        let leaving = self.leave_by.is_some();
        tokio::select! {
            biased;
            () = shutdown.cancelled(), if !leaving => {}
            () = reached(self.leave_by) => {}
            () = reached(self.idle_until()) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    /// When it leaves by itself, if it is given nothing until then.
    fn idle_until(&self) -> Option<Instant> {
        let leaves_anyway = self.leave_by.is_some();
        self.idle_since.zip(self.leaving.when_idle).filter(|_| !leaves_anyway).map(|(since, time)| since + time)
    }

    fn ending(&self) -> Duration {
        self.leaving.grace.mul_f64(ENDING).min(LONGEST_ENDING)
    }

    fn request(&self) -> v1::SyncRequest {
        let hold = match self.attempts.is_empty() {
            // News that come faster than calls end would have every call given up, and none answered.
            _ if self.has_news => Duration::ZERO,
            true => HOLD_IDLE,
            false => HOLD_BUSY,
        };
        v1::SyncRequest {
            worker_id: self.joined.worker_id.clone(),
            attempts: self.attempts.values().map(Held::report).collect(),
            hold_ms: hold.as_millis() as u64,
            draining: self.leave_by.is_some(),
            cache: Some(self.statement()),
            device_error: self.runner.device_error().unwrap_or_default(),
            // The connection counts.
            number: 0,
            load: self.runner.load(),
            logs: self.runner.logs(&self.wanted),
        }
    }

    fn statement(&self) -> v1::NodeCache {
        match self.cache.version == self.known_cache {
            true => v1::NodeCache { version: self.cache.version, shards: Vec::new() },
            false => self.cache.clone(),
        }
    }

    fn ended(&mut self, lease: v1::Lease, outcome: Outcome) {
        let (task, attempt) = (&lease.task_id, &lease.attempt_id);
        match &outcome {
            Outcome::Done(done) => tracing::info!(task, attempt, seconds = done.busy_seconds, "attempt done"),
            Outcome::Failed(failure) => tracing::error!(task, attempt, reason = failure.message, "attempt failed"),
            Outcome::Released => {
                let progress = self.attempts.get(&key(&lease)).map(|held| held.attempt.progress()).unwrap_or_default();
                let checkpoint = progress.checkpoint.map_or(0, |checkpoint| checkpoint.step);
                tracing::info!(task, attempt, step = progress.step, checkpoint, "attempt handed back");
            }
            Outcome::Dropped => {
                tracing::info!(task, attempt, "attempt dropped");
                return;
            }
        }
        if let Some(held) = self.attempts.get_mut(&key(&lease)) {
            held.outcome = Some(outcome);
        }
    }

    /// Does what the coordinator says. False if the worker ends instead.
    async fn take(&mut self, response: v1::SyncResponse, shutdown: &CancellationToken) -> Result<bool, Error> {
        self.known_cache = response.cache_version;
        self.wanted = response.logs_wanted;
        match (self.read_only.is_empty(), response.read_only.is_empty()) {
            (true, false) => {
                let reason = &response.read_only;
                tracing::warn!(reason, "the coordinator takes nothing in; going on, and keeping results until it does");
            }
            (false, true) => tracing::info!("the coordinator takes reports in again"),
            (true, true) | (false, false) => {}
        }
        self.read_only = response.read_only;
        if response.rejoin {
            tracing::warn!("the coordinator has forgotten this worker; joining again");
            self.stop_all(Stop::Fenced);
            self.attempts.clear();
            self.idle_since = self.idle_since.or_else(|| Some(Instant::now()));
            let until = self.idle_until();
            let Some(joined) = coordinator::join(&mut self.coordinator, until, shutdown).await? else {
                return Ok(false);
            };
            self.joined = joined;
            return Ok(true);
        }
        for lease in &response.acknowledged {
            self.attempts.remove(&key(lease));
        }
        for cancel in response.cancel {
            let Some(held) = cancel.lease.as_ref().and_then(|lease| self.attempts.remove(&key(lease))) else {
                continue;
            };
            held.attempt.stop(Stop::Fenced);
            let (task, attempt) = (&held.lease.task_id, &held.lease.attempt_id);
            tracing::info!(task, attempt, reason = cancel.reason, "attempt is over");
        }
        for lease in &response.hand_back {
            if let Some(held) = self.attempts.get(&key(lease)) {
                held.attempt.stop(Stop::Release);
            }
        }
        for start in response.start {
            let (Some(lease), Some(spec)) = (start.lease, start.task) else { continue };
            let leaving = self.leave_by.is_some();
            if !leaving && !self.attempts.contains_key(&key(&lease)) {
                let interval = Duration::from_millis(self.joined.checkpoint_interval_ms);
                let ended = Ended { lease: lease.clone(), outcomes: self.outcomes.clone() };
                let attempt = self.runner.start(&lease, spec, interval, ended);
                self.attempts.insert(key(&lease), Held { lease, attempt, outcome: None });
            }
        }
        Ok(true)
    }

    fn stop_all(&self, stop: Stop) {
        for held in self.attempts.values() {
            held.attempt.stop(stop);
        }
    }

    /// Tells the coordinator that nothing more is wanted, if it can be reached. False where something was given in the last moment,
    /// of which the answer tells: it is begun, and the worker stays.
    async fn is_let_go(&mut self, shutdown: &CancellationToken) -> Result<bool, Error> {
        tracing::info!(after = ?self.leaving.when_idle.unwrap_or_default(), "leaving: nothing was given for so long");
        let request = v1::SyncRequest { hold_ms: 0, draining: true, ..self.request() };
        let said = tokio::time::timeout(self.ending() / 2, self.coordinator.sync(request)).await;
        let told = match said {
            Ok(Ok(response)) if !response.start.is_empty() => return Ok(!self.take(response, shutdown).await?),
            said => matches!(said, Ok(Ok(_))),
        };
        tracing::info!(told, "worker left");
        Ok(true)
    }

    /// Tells the coordinator that nothing is held any more, if it can be reached: an attempt that didn't stop in time ends with
    /// the process, and is gone on with from its last checkpoint.
    async fn say_goodbye(&mut self) {
        for Held { lease, outcome, .. } in self.attempts.values_mut() {
            if outcome.is_none() {
                let (task, attempt) = (&lease.task_id, &lease.attempt_id);
                tracing::warn!(task, attempt, "attempt did not stop in time; handed back with its last checkpoint");
                *outcome = Some(Outcome::Released);
            }
        }
        let request = v1::SyncRequest { hold_ms: 0, draining: true, ..self.request() };
        let said = tokio::time::timeout(self.ending() / 2, self.coordinator.sync(request)).await;
        let told = matches!(said, Ok(Ok(_)));
        tracing::info!(told, "worker left");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::work;
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    /// What the coordinator answers to a request at this time after the start; it is away if that is nothing.
    type Answer = Box<dyn FnMut(&v1::SyncRequest, Duration) -> Option<v1::SyncResponse> + Send>;

    struct Scripted {
        began: Instant,
        is_met: bool,
        answer: Answer,
        last: Arc<Mutex<v1::SyncRequest>>,
    }

    impl Coordinator for Scripted {
        fn address(&self) -> &str {
            "nowhere"
        }

        async fn join(&mut self) -> Result<v1::JoinResponse, Unanswered> {
            match self.is_met {
                true => Ok(v1::JoinResponse { worker_id: "w1".into(), ..v1::JoinResponse::default() }),
                false => Err(Unanswered::Away("nobody is there".into())),
            }
        }

        async fn sync(&mut self, request: v1::SyncRequest) -> Result<v1::SyncResponse, Unanswered> {
            let answer = (self.answer)(&request, self.began.elapsed());
            *self.last.lock().expect("no panic") = request.clone();
            let answer = answer.ok_or_else(|| Unanswered::Away("nobody is there".into()))?;
            if answer.start.is_empty() && answer.acknowledged.is_empty() {
                tokio::time::sleep(Duration::from_millis(request.hold_ms)).await;
            }
            Ok(answer)
        }

        fn jitter_seed(&self) -> Option<u64> {
            Some(1)
        }
    }

    /// Has every attempt take so long.
    struct Taking(Duration);

    struct Unstopped;

    impl Attempt for Unstopped {
        fn stop(&self, _: Stop) {}

        fn progress(&self) -> v1::Progress {
            v1::Progress::default()
        }
    }

    impl Runner for Taking {
        type Attempt = Unstopped;

        fn start(&self, _: &v1::Lease, _: v1::TaskSpec, _: Duration, ended: Ended) -> Unstopped {
            let time = self.0;
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                ended.tell(Outcome::Done(v1::Done::default()));
            });
            Unstopped
        }

        async fn cache(&self) -> v1::NodeCache {
            v1::NodeCache::default()
        }
    }

    fn start() -> v1::SyncResponse {
        let lease = v1::Lease { task_id: "tiny-1/task".into(), attempt_id: "a1".into(), epoch: 1 };
        let start = v1::Start { lease: Some(lease), task: Some(v1::TaskSpec::default()) };
        v1::SyncResponse { start: vec![start], ..v1::SyncResponse::default() }
    }

    /// Acknowledges what is done.
    fn taking_in(request: &v1::SyncRequest) -> v1::SyncResponse {
        let done = request.attempts.iter().filter(|report| report.is_done());
        let acknowledged = done.filter_map(|report| report.lease.clone()).collect();
        v1::SyncResponse { acknowledged, ..v1::SyncResponse::default() }
    }

    /// How long a worker whose attempts take 100 s stays where it leaves after a minute in which it is given nothing, how it ended,
    /// and what it said last.
    async fn stays(is_met: bool, answer: Answer) -> (u64, Result<(), Error>, v1::SyncRequest) {
        let (began, last) = (Instant::now(), Arc::new(Mutex::new(v1::SyncRequest::default())));
        let coordinator = Scripted { began, is_met, answer, last: last.clone() };
        let leaving = Leaving { grace: Duration::from_secs(8), when_idle: Some(IDLE) };
        let ended = work(coordinator, Taking(Duration::from_secs(100)), leaving, CancellationToken::new()).await;
        let last = last.lock().expect("no panic").clone();
        (began.elapsed().as_secs(), ended, last)
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_given_nothing_says_that_it_leaves() {
        let (seconds, ended, last) = stays(true, Box::new(|request, _| Some(taking_in(request)))).await;
        assert_eq!((seconds, ended.is_ok(), last.draining), (60, true, true));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_since_its_last_task_was_taken_in() {
        let mut is_given = false;
        let (seconds, ended, _) = stays(
            true,
            Box::new(move |request, now| {
                let is_time = now.as_secs() >= 50 && !is_given;
                is_given |= is_time;
                Some(if is_time { start() } else { taking_in(request) })
            }),
        )
        .await;
        // Given at 50 s, done 100 s later.
        assert_eq!((seconds, ended.is_ok()), (210, true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_in_the_last_moment_is_done() {
        let (mut is_given, mut is_done) = (false, false);
        let told = Arc::new(Mutex::new(false));
        let tell = told.clone();
        let (seconds, ended, last) = stays(
            true,
            Box::new(move |request, _| {
                let is_first = request.draining && !is_given;
                is_given |= is_first;
                is_done |= request.attempts.iter().any(v1::AttemptReport::is_done);
                *tell.lock().expect("no panic") = is_done;
                Some(if is_first { start() } else { taking_in(request) })
            }),
        )
        .await;
        assert_eq!((seconds, ended.is_ok(), last.draining), (220, true, true));
        assert!(*told.lock().expect("no panic"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_is_away_keeps_no_idle_worker() {
        let (seconds, ended, _) = stays(true, Box::new(|_, _| None)).await;
        assert_eq!((seconds, ended.is_ok()), (60, true));
        let (seconds, ended, _) = stays(false, Box::new(|_, _| None)).await;
        assert!(seconds == 60 && matches!(ended, Err(Error::NeverMet { .. })), "{seconds} s: {ended:?}");
    }
}
