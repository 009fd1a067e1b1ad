//! Jobs of which nothing moves: that is said, with what would help, before anybody has to ask.

use std::time::Duration;

use deltaconv_proto::ids::JobId;

use super::{Command, Effects, Now, State};

/// A job that nobody works on for this long says why.
const AFTER: Duration = Duration::from_secs(15);
/// How often jobs are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Jobs of which it is said at one look: to know why takes a look at every worker.
const AT_ONCE: usize = 16;

/// Since when nobody has worked on a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Still {
    since: Duration,
    said: bool,
}

impl State {
    /// Says why of each job that could go on and doesn't, once.
    pub(super) fn look_for_still_jobs(&mut self, now: Now, effects: &mut Effects) {
        if now.monotonic < self.looked_for_still_jobs + EVERY {
            return;
        }
        self.looked_for_still_jobs = now.monotonic;
        let mut over = Vec::new();
        for job in self.jobs.values_mut() {
            if !job.is_running() || !job.in_work.is_empty() {
                job.still = None;
                continue;
            }
            let still = job.still.get_or_insert(Still { since: now.monotonic, said: false });
            if !still.said && now.monotonic >= still.since + AFTER && over.len() < AT_ONCE {
                still.said = true;
                over.push(job.id.clone());
            }
        }
        let say = |job: JobId| {
            let waiting = self.waiting_for(&self.jobs[&job], now)?;
            Some(Command::Say { job, waiting: waiting.to_string() })
        };
        effects.commands.extend(over.into_iter().filter_map(say));
    }
}
