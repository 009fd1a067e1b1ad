//! How long something will still take, from how fast it went of late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::duration;

/// Less says too little about the pace.
const SHORTEST_BASE: Duration = Duration::from_secs(2);
/// Looks that are remembered, at least so far apart as the shortest base: what was long ago says little.
const LOOKS: usize = 60;
/// With fewer paces nothing is said of how they differ.
const PACES: usize = 4;
/// Standard errors of the mean pace to either side: about 95 of 100 means lie within them.
const SPREAD: f64 = 2.0;

/// Watches one quantity grow.
#[derive(Debug, Default)]
pub(crate) struct Remaining {
    looks: VecDeque<(Instant, f64)>,
    last: f64,
}

/// A time that is left, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Left {
    /// At the mean pace.
    pub(crate) seconds: f64,
    /// At the fastest and the slowest that the mean pace may be; none while too little was seen.
    pub(crate) spread: Option<(f64, f64)>,
}

impl Left {
    /// In words: "4 min 5 s left", and where that is far from sure "(3 min 0 s to 6 min 0 s)".
    pub(crate) fn describe(&self) -> String {
        let spell = |seconds: f64| duration::spell(seconds.ceil());
        let text = format!("{} left", spell(self.seconds));
        match self.spread {
            Some((low, high)) if high - low > 0.2 * self.seconds && high - low > 2.0 => match high.is_finite() {
                true => format!("{text} ({} to {})", spell(low), spell(high)),
                false => format!("{text} ({} or more)", spell(low)),
            },
            _ => text,
        }
    }
}

impl Remaining {
    /// `done` of `total` at `now`; answers with the time left, once that can be said.
    pub(crate) fn update(&mut self, now: Instant, done: f64, total: f64) -> Option<Left> {
        // Work that was lost with its worker is done again: the pace since then counts.
        if done < self.last {
            self.looks.clear();
        }
        self.last = done;
        let is_due = self.looks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SHORTEST_BASE);
        if is_due {
            self.looks.push_back((now, done));
            if self.looks.len() > LOOKS {
                self.looks.pop_front();
            }
        }
        let (since, from) = *self.looks.front()?;
        let elapsed = now.saturating_duration_since(since);
        let gained = done - from;
        if elapsed < SHORTEST_BASE || gained <= 0.0 {
            return None;
        }
        let (rest, pace) = ((total - done).max(0.0), gained / elapsed.as_secs_f64());
        let spread = self.error().map(|error| {
            let slowest = pace - SPREAD * error;
            (rest / (pace + SPREAD * error), if slowest > 0.0 { rest / slowest } else { f64::INFINITY })
        });
        Some(Left { seconds: rest / pace, spread })
    }

    /// The standard error of the mean pace.
    fn error(&self) -> Option<f64> {
        let looks = self.looks.iter().zip(self.looks.iter().skip(1));
        let paces: Vec<f64> = looks
            .map(|((earlier, before), (later, after))| {
                (after - before) / later.saturating_duration_since(*earlier).as_secs_f64()
            })
            .collect();
        if paces.len() < PACES {
            return None;
        }
        let count = paces.len() as f64;
        let mean = paces.iter().sum::<f64>() / count;
        let variance = paces.iter().map(|pace| (pace - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some((variance / count).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_since_the_start_or_the_last_setback_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut remaining = Remaining::default();
        let mut seconds = |time, done| remaining.update(at(time), done, 600.0).map(|left| left.seconds);
        assert_eq!(seconds(0, 100.0), None);
        assert_eq!(seconds(1, 120.0), None);
        assert_eq!(seconds(10, 300.0), Some(15.0));
        assert_eq!(seconds(11, 200.0), None);
        assert_eq!(seconds(15, 400.0), Some(4.0));
    }

    #[test]
    fn a_steady_pace_is_sure_and_a_changing_one_is_not() {
        let start = Instant::now();
        let left = |gains: &[f64]| {
            let (mut remaining, mut done, mut left) = (Remaining::default(), 0.0, None);
            for (look, gain) in gains.iter().enumerate() {
                left = remaining.update(start + 2 * look as u32 * Duration::from_secs(1), done, 1000.0);
                done += gain;
            }
            left.expect("known")
        };
        let steady = left(&[10.0; 12]);
        assert_eq!(steady.spread, Some((steady.seconds, steady.seconds)));
        assert_eq!(steady.describe(), "2 min 58 s left");
        let changing = left(&[4.0, 16.0, 4.0, 16.0, 4.0, 16.0, 4.0, 16.0, 4.0, 16.0, 4.0]);
        let (low, high) = changing.spread.expect("known");
        assert!(low < changing.seconds && changing.seconds < high && high.is_finite(), "{changing:?}");
        assert!(changing.describe().contains(" to "), "{}", changing.describe());
        let hardly = left(&[0.0, 0.0, 0.0, 0.0, 0.0, 30.0, 0.0, 0.0]);
        assert!(hardly.describe().ends_with("or more)"), "{}", hardly.describe());
        assert_eq!(left(&[10.0, 10.0, 10.0]).spread, None);
    }
}
