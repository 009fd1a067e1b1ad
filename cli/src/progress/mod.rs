//! How a job goes, on stderr: bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal};

use deltaconv_proto::v1;
use indicatif::MultiProgress;

use crate::output;
use crate::watching::Watcher;

mod bars;
mod beside;
mod curve;
mod describe;
mod lines;
mod remaining;

pub(crate) use beside::Beside;
pub(crate) use curve::Curves;

/// Shows every status it is told of.
pub(crate) struct Progress {
    voice: Voice,
    view: View,
}

enum View {
    Bars(bars::Bars),
    Lines(lines::Lines),
}

/// Says lines without tearing the bars apart. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Voice(Option<MultiProgress>);

impl Voice {
    /// Writes a line to stderr, above the bars.
    pub(crate) fn say(&self, line: &str) {
        match &self.0 {
            Some(bars) => bars.suspend(|| output::say(line)),
            None => output::say(line),
        }
    }
}

impl Progress {
    /// Bars if stderr is a terminal, and below them what `beside` has.
    pub(crate) fn new(beside: Beside) -> Self {
        if io::stderr().is_terminal() {
            let area = MultiProgress::new();
            Self { voice: Voice(Some(area.clone())), view: View::Bars(bars::Bars::new(area, beside)) }
        } else {
            Self { voice: Voice(None), view: View::Lines(lines::Lines::default()) }
        }
    }

    /// For lines from elsewhere, while the bars are drawn.
    pub(crate) fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// Leaves what is shown as it is.
    pub(crate) fn finish(&mut self) {
        if let View::Bars(bars) = &mut self.view {
            bars.finish();
        }
    }
}

impl Watcher for Progress {
    fn status(&mut self, status: &v1::JobStatus) {
        match &mut self.view {
            View::Bars(bars) => bars.show(status),
            View::Lines(lines) => {
                for line in lines.of(status, std::time::Instant::now()) {
                    output::say(&line);
                }
            }
        }
    }

    fn say(&mut self, line: &str) {
        self.voice.say(line);
    }
}
