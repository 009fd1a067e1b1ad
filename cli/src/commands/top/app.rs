//! What is looked at, and what keys do to it.

use deltaconv_proto::v1;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::error::Error;
use crate::progress::Curves;

/// Everything that one look found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) jobs: Vec<v1::JobSummary>,
    pub(super) workers: Vec<v1::WorkerStatus>,
    pub(super) events: Vec<v1::Event>,
    /// Of the job that is looked at.
    pub(super) status: Option<v1::JobStatus>,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    Jobs,
    Job(String),
    Workers,
    Events,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    Pause(String),
    Resume(String),
    Drain(String),
    Return(String),
}

/// The state of the terminal.
#[derive(Debug)]
pub(super) struct App {
    url: String,
    pub(super) view: View,
    /// The row that keys are about, counted over the view's.
    pub(super) row: usize,
    pub(super) seen: Seen,
    /// Why nothing is seen at the moment.
    pub(super) away: Option<String>,
    /// What became of the last key.
    pub(super) said: String,
    pub(super) curves: Curves,
    pub(super) shows_help: bool,
    /// Whether there are colours.
    pub(super) paints: bool,
}

impl App {
    pub(super) fn new(url: String, job: Option<String>, paints: bool) -> Self {
        Self {
            url,
            view: job.map_or(View::Jobs, View::Job),
            row: 0,
            seen: Seen::default(),
            away: None,
            said: String::new(),
            curves: Curves::default(),
            shows_help: false,
            paints,
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The job whose status is wanted.
    pub(super) fn wish(&self) -> Option<String> {
        if let View::Job(job) = &self.view { Some(job.clone()) } else { None }
    }

    pub(super) fn say(&mut self, text: String) {
        self.said = text;
    }

    pub(super) fn see(&mut self, looked: Result<Seen, Error>) {
        match looked {
            Ok(seen) => {
                self.away = None;
                if let Some(status) = &seen.status {
                    self.curves.note(&status.layers);
                }
                self.seen = seen;
            }
            Err(error) => self.away = Some(error.to_string()),
        }
        self.row = self.row.min(self.rows().saturating_sub(1));
    }

    /// How many rows the view has.
    pub(super) fn rows(&self) -> usize {
        match &self.view {
            View::Jobs => self.seen.jobs.len(),
            View::Job(_) => self.seen.status.as_ref().map_or(0, |status| status.layers.len()),
            View::Workers => self.seen.workers.len(),
            View::Events => self.seen.events.len(),
        }
    }

    fn turn_to(&mut self, view: View) {
        if self.view != view {
            (self.view, self.row) = (view, 0);
            if self.wish().is_some() {
                self.seen.status = None;
            }
        }
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        self.said.clear();
        if std::mem::take(&mut self.shows_help) {
            return Action::None;
        }
        let last = self.rows().saturating_sub(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Action::Quit,
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?' | 'h') => self.shows_help = true,
            KeyCode::Esc | KeyCode::Backspace => self.turn_to(View::Jobs),
            KeyCode::Down | KeyCode::Char('j') => self.row = (self.row + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::PageDown => self.row = (self.row + 10).min(last),
            KeyCode::PageUp => self.row = self.row.saturating_sub(10),
            KeyCode::Home | KeyCode::Char('g') => self.row = 0,
            KeyCode::End | KeyCode::Char('G') => self.row = last,
            KeyCode::Tab | KeyCode::Right => self.turn_to(match self.view {
                View::Jobs | View::Job(_) => View::Workers,
                View::Workers => View::Events,
                View::Events => View::Jobs,
            }),
            KeyCode::BackTab | KeyCode::Left => self.turn_to(match self.view {
                View::Jobs | View::Job(_) => View::Events,
                View::Workers => View::Jobs,
                View::Events => View::Workers,
            }),
            KeyCode::Enter if self.view == View::Jobs => {
                if let Some(job) = self.seen.jobs.get(self.row) {
                    self.turn_to(View::Job(job.job_id.clone()));
                }
            }
            KeyCode::Char('p') => return self.pause(),
            KeyCode::Char('d') if self.view == View::Workers => {
                let Some(worker) = self.seen.workers.get(self.row) else { return Action::None };
                let id = worker.worker_id.clone();
                let is_given_tasks = matches!(worker.state.as_str(), "idle" | "busy");
                return if is_given_tasks { Action::Drain(id) } else { Action::Return(id) };
            }
            _ => {}
        }
        Action::None
    }

    /// Of the job that is looked at, or of the row's.
    fn pause(&self) -> Action {
        let job = match &self.view {
            View::Jobs => self.seen.jobs.get(self.row),
            View::Job(id) => self.seen.jobs.iter().find(|job| job.job_id == *id),
            View::Workers | View::Events => None,
        };
        match job {
            Some(job) if job.paused => Action::Resume(job.job_id.clone()),
            Some(job) => Action::Pause(job.job_id.clone()),
            None => Action::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    fn app() -> App {
        let job = |id: &str, paused| v1::JobSummary { job_id: id.into(), paused, ..v1::JobSummary::default() };
        let worker = |id: &str, state: &str| v1::WorkerStatus {
            worker_id: id.into(),
            state: state.into(),
            ..v1::WorkerStatus::default()
        };
        let mut app = App::new("http://a:1".into(), None, false);
        app.see(Ok(Seen {
            jobs: vec![job("one-1", false), job("two-2", true)],
            workers: vec![worker("w1", "busy"), worker("w2", "draining")],
            ..Seen::default()
        }));
        app
    }

    #[test]
    fn keys_are_about_the_row_that_is_chosen() {
        let mut app = app();
        assert_eq!(app.press(key(KeyCode::Char('p'))), Action::Pause("one-1".into()));
        app.press(key(KeyCode::Down));
        app.press(key(KeyCode::Down));
        assert_eq!(app.row, 1, "there is no third row");
        assert_eq!(app.press(key(KeyCode::Char('p'))), Action::Resume("two-2".into()));
        assert_eq!(app.press(key(KeyCode::Char('d'))), Action::None, "no worker is in sight");
        app.press(key(KeyCode::Tab));
        assert_eq!(app.press(key(KeyCode::Char('d'))), Action::Drain("w1".into()));
        app.press(key(KeyCode::Down));
        assert_eq!(app.press(key(KeyCode::Char('d'))), Action::Return("w2".into()));
    }

    #[test]
    fn a_job_is_gone_into_and_come_back_from() {
        let mut app = app();
        app.press(key(KeyCode::Down));
        app.press(key(KeyCode::Enter));
        assert_eq!(app.wish(), Some("two-2".into()));
        assert_eq!(app.press(key(KeyCode::Char('p'))), Action::Resume("two-2".into()));
        app.press(key(KeyCode::Esc));
        assert_eq!((app.view.clone(), app.wish()), (View::Jobs, None));
        assert_eq!(app.press(key(KeyCode::Char('q'))), Action::Quit);
    }

    #[test]
    fn rows_that_vanish_take_the_choice_with_them() {
        let mut app = app();
        app.press(key(KeyCode::End));
        app.see(Ok(Seen::default()));
        assert_eq!(app.row, 0);
        assert_eq!(app.press(key(KeyCode::Char('p'))), Action::None);
        app.press(key(KeyCode::Enter));
        assert_eq!(app.view, View::Jobs);
    }

    #[test]
    fn what_was_seen_stays_in_sight_while_the_coordinator_is_away() {
        let mut app = app();
        app.see(Err(Error::Declined));
        assert_eq!((app.seen.jobs.len(), app.away.is_some()), (2, true));
        app.see(Ok(Seen::default()));
        assert!(app.away.is_none());
    }
}
