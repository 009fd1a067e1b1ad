//! The terminal's picture of what was seen.

use deltaconv_proto::{utc, v1};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState};

use super::app::{App, View};
use crate::commands::workers::busy;
use crate::{stage, table};

/// Characters of a bar.
const BAR: usize = 16;
/// Lines of events below everything else.
const LAST: u16 = 4;

const HELP: &str = "↑↓ choose   Enter look into a job   Esc back   Tab jobs, workers, events
p pause a job, or have it go on   d drain a worker, or give it tasks again
q end";

pub(super) fn draw(frame: &mut Frame, app: &App) {
    let [head, main, last, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(if app.view == View::Events { 0 } else { LAST }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(app)), head);
    match &app.view {
        View::Jobs => jobs(frame, app, main),
        View::Job(job) => of_job(frame, app, job, main),
        View::Workers => workers(frame, app, main),
        View::Events => events(frame, app, main),
    }
    let happened = app.seen.events.iter().rev().take(LAST.into()).rev();
    frame.render_widget(Paragraph::new(happened.map(|event| Line::from(one_event(event))).collect::<Vec<_>>()), last);
    frame.render_widget(Paragraph::new(footing(app)), foot);
    if app.shows_help {
        help(frame);
    }
}

fn heading(app: &App) -> Vec<Line<'static>> {
    let count = |state: &str| app.seen.workers.iter().filter(|worker| worker.state == state).count();
    let running = app.seen.jobs.iter().filter(|job| job.state == "running").count();
    let rate = |of: fn(&v1::Load) -> f64| {
        let rates = app.seen.workers.iter().filter_map(|worker| worker.load.as_ref()).map(of);
        table::bytes(rates.filter(|rate| rate.is_finite()).sum::<f64>() as u64)
    };
    let (reads, writes) = (rate(|load| load.read_bytes_per_second), rate(|load| load.written_bytes_per_second));
    let text = format!(
        "deltaconv at {}   {running} of {} jobs running   workers: {} busy, {} idle, {} others   stores: {reads}/s in, {writes}/s out",
        app.url(),
        app.seen.jobs.len(),
        count("busy"),
        count("idle"),
        app.seen.workers.len() - count("busy") - count("idle"),
    );
    let tabs = [("jobs", matches!(app.view, View::Jobs | View::Job(_))), ("workers", app.view == View::Workers)];
    let tabs = tabs.into_iter().chain([("events", app.view == View::Events)]);
    let tabs = tabs.map(|(name, is_here)| match is_here {
        true => Span::styled(format!("[{name}] "), Style::new().add_modifier(Modifier::BOLD)),
        false => Span::raw(format!(" {name}  ")),
    });
    vec![Line::raw(text), Line::from(tabs.collect::<Vec<_>>())]
}

fn footing(app: &App) -> Line<'static> {
    match (&app.away, app.said.as_str()) {
        (Some(away), _) => painted(app, table::one_line(away), Color::Red),
        (None, "") => Line::raw("? help   q end"),
        (None, said) => Line::raw(table::one_line(said)),
    }
}

fn painted(app: &App, text: String, colour: Color) -> Line<'static> {
    Line::styled(text, style(app, colour))
}

fn style(app: &App, colour: Color) -> Style {
    if app.paints { Style::new().fg(colour) } else { Style::new() }
}

fn of_state(app: &App, state: &str) -> Style {
    style(
        app,
        match state {
            "done" | "busy" | "running" | "committed" => Color::Green,
            "failed" | "lost" | "out" | "quarantined" => Color::Red,
            "paused" | "draining" | "kept" => Color::Yellow,
            _ => return Style::new(),
        },
    )
}

/// A table whose chosen row is in sight.
fn rows(frame: &mut Frame, app: &App, area: Rect, headings: &[&'static str], widths: &[Constraint], rows: Vec<Row>) {
    let headings = Row::new(headings.iter().map(|heading| heading.to_uppercase()).collect::<Vec<_>>());
    let chosen = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(rows, widths).header(headings).row_highlight_style(chosen).column_spacing(1);
    let mut state = TableState::default().with_selected(Some(app.row));
    frame.render_stateful_widget(table, area, &mut state);
}

fn jobs(frame: &mut Frame, app: &App, area: Rect) {
    let row = |job: &v1::JobSummary| {
        let state = if job.paused { "paused" } else { job.state.as_str() };
        Row::new([
            Cell::from(job.job_id.clone()),
            Cell::from(state.to_owned()).style(of_state(app, state)),
            Cell::from(stage::name(&job.stage, job.round)),
            Cell::from(format!("{} {:3.0} %", bar(job.fraction), 100.0 * job.fraction)),
            Cell::from(job.owner.clone()),
            Cell::from(table::one_line(if job.reason.is_empty() { &job.output_url } else { &job.reason })),
        ])
    };
    let listed = app.seen.jobs.iter().map(row).collect();
    let widths = [20, 10, 18, 22, 10].map(Constraint::Length);
    let widths = widths.into_iter().chain([Constraint::Min(10)]).collect::<Vec<_>>();
    rows(frame, app, area, &["job", "state", "stage", "done", "owner", "output or reason"], &widths, listed);
}

fn of_job(frame: &mut Frame, app: &App, job: &str, area: Rect) {
    let Some(status) = &app.seen.status else {
        return frame.render_widget(Paragraph::new(format!("looking at {job}")), area);
    };
    let stages: Vec<Line> = status.stages.iter().map(|stage| of_stage(app, stage)).collect();
    let waiting = if status.waiting_for.is_empty() { 0 } else { 1 };
    let [top, wait, below] = Layout::vertical([
        Constraint::Length(stages.len() as u16 + 1),
        Constraint::Length(waiting),
        Constraint::Min(3),
    ])
    .areas(area);
    let summary = status.summary.clone().unwrap_or_default();
    let state = if summary.paused { "paused" } else { summary.state.as_str() };
    let title = format!("{job} is {state}, {:.0} % done", 100.0 * summary.fraction);
    let title = Line::styled(title, Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Paragraph::new(std::iter::once(title).chain(stages).collect::<Vec<_>>()), top);
    let waits = format!("waiting: {}", table::one_line(&status.waiting_for));
    frame.render_widget(Paragraph::new(painted(app, waits, Color::Yellow)), wait);
    let row = |layer: &v1::LayerStatus| {
        let share = if layer.steps > 0 { layer.step as f64 / layer.steps as f64 } else { 0.0 };
        Row::new([
            Cell::from(layer.name.clone()),
            Cell::from(layer.state.clone()).style(of_state(app, &layer.state)),
            Cell::from(format!(
                "{} {}/{}",
                bar(if layer.state == "done" { 1.0 } else { share }),
                layer.step,
                layer.steps
            )),
            Cell::from(app.curves.row(&layer.name)),
            Cell::from(table::figure(layer.held_out_error, |error| format!("{error:.5}"))),
            Cell::from(table::figure(layer.samples_per_second, |rate| format!("{rate:.0}"))),
        ])
    };
    let listed = status.layers.iter().map(row).collect();
    let widths = [
        Constraint::Min(20),
        Constraint::Length(12),
        Constraint::Length(BAR as u16 + 14),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(9),
    ];
    rows(frame, app, below, &["layer", "state", "steps", "loss", "held-out", "samples/s"], &widths, listed);
}

fn of_stage(app: &App, of: &v1::StageStatus) -> Line<'static> {
    let (state, fraction) = match (of.started_unix_ms, of.finished_unix_ms) {
        (0, _) => ("waiting", 0.0),
        (_, 0) => ("running", of.done / f64::from(of.tasks.max(1))),
        _ => ("done", 1.0),
    };
    let name = stage::name(&of.stage, of.round);
    let tasks = format!("{}/{} tasks", of.committed, of.tasks);
    let rate = table::figure(of.samples_per_second, |rate| format!("{rate:.0} samples/s"));
    let text = format!("  {name:22} {} {tasks:16} {rate}", bar(fraction));
    Line::styled(text, of_state(app, state))
}

fn workers(frame: &mut Frame, app: &App, area: Rect) {
    let row = |worker: &v1::WorkerStatus| {
        let device = worker.device.clone().unwrap_or_default();
        let load = worker.load.unwrap_or_default();
        let [share, used] = busy(&device, &load);
        let or_dash =
            |value: Option<f64>, unit: &str| value.map_or("–".to_owned(), |value| format!("{value:.0} {unit}"));
        let rate = |rate: f64| table::figure(rate, |rate| format!("{}/s", table::bytes(rate as u64)));
        let tasks = if worker.reason.is_empty() { worker.tasks.join(", ") } else { worker.reason.clone() };
        Row::new([
            Cell::from(table::one_line(&worker.name)),
            Cell::from(table::one_line(&worker.node)),
            Cell::from(worker.state.clone()).style(of_state(app, &worker.state)),
            Cell::from(table::one_line(&device.name)),
            Cell::from(share),
            Cell::from(format!("{used}/{}", table::bytes(device.memory_bytes))),
            Cell::from(or_dash(load.gpu_temperature, "°C")),
            Cell::from(or_dash(load.gpu_power, "W")),
            Cell::from(rate(load.read_bytes_per_second)),
            Cell::from(rate(load.written_bytes_per_second)),
            Cell::from(table::one_line(&tasks)),
        ])
    };
    let listed = app.seen.workers.iter().map(row).collect();
    let widths = [16, 10, 9, 14, 6, 17, 6, 6, 10, 10].map(Constraint::Length);
    let widths = widths.into_iter().chain([Constraint::Min(10)]).collect::<Vec<_>>();
    let headings =
        ["name", "machine", "state", "device", "load", "memory", "heat", "power", "reads", "writes", "tasks or reason"];
    rows(frame, app, area, &headings, &widths, listed);
}

fn events(frame: &mut Frame, app: &App, area: Rect) {
    let listed = app.seen.events.iter().rev().map(|event| Row::new([one_event(event)])).collect();
    rows(frame, app, area, &["what happened, the last first"], &[Constraint::Min(20)], listed);
}

fn one_event(event: &v1::Event) -> String {
    let about = [&event.task_id, &event.job_id, &event.worker_id, &event.node];
    let about = about.into_iter().find(|id| !id.is_empty()).map(String::as_str).unwrap_or_default();
    table::one_line(&format!("{}  {:7}  {about}  {}", utc(event.unix_ms), event.severity, event.message))
}

fn bar(fraction: f64) -> String {
    let full = (fraction.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("{}{}", "━".repeat(full), "─".repeat(BAR - full))
}

fn help(frame: &mut Frame) {
    let lines = HELP.lines().count() as u16 + 2;
    let width = HELP.lines().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let area = frame.area();
    let (width, lines) = (width.min(area.width), lines.min(area.height));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - lines) / 2, width, height: lines };
    frame.render_widget(Clear, place);
    let text = Paragraph::new(HELP).alignment(Alignment::Left).block(Block::bordered().title(" keys "));
    frame.render_widget(text, place);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::super::app::Seen;
    use super::*;

    fn drawn(app: &App, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, app)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    fn seen() -> Seen {
        let load = v1::Load {
            gpu_utilisation: Some(0.93),
            gpu_memory_used_bytes: Some(61_000_000_000),
            gpu_temperature: Some(64.0),
            gpu_power: Some(512.0),
            read_bytes_per_second: 2.5e9,
            ..v1::Load::default()
        };
        let device = v1::Device {
            kind: v1::Device::CUDA.into(),
            name: "NVIDIA H200".into(),
            memory_bytes: 150_000_000_000,
            ..v1::Device::default()
        };
        let layer = v1::LayerStatus {
            name: "mid_block.attentions.0".into(),
            state: "running".into(),
            step: 750,
            steps: 1500,
            held_out_error: 0.0123,
            history: [0.5, 0.05, 0.02]
                .map(|error| v1::LayerPoint { held_out_error: error, ..v1::LayerPoint::default() })
                .to_vec(),
            ..v1::LayerStatus::default()
        };
        let summary = v1::JobSummary {
            job_id: "sdxl-1".into(),
            state: "running".into(),
            stage: "distill".into(),
            fraction: 0.5,
            ..v1::JobSummary::default()
        };
        let stage = v1::StageStatus {
            stage: "distill".into(),
            tasks: 70,
            committed: 35,
            done: 35.0,
            started_unix_ms: 1,
            ..v1::StageStatus::default()
        };
        Seen {
            jobs: vec![summary.clone()],
            workers: vec![v1::WorkerStatus {
                worker_id: "w1".into(),
                name: "node-a".into(),
                state: "busy".into(),
                device: Some(device),
                load: Some(load),
                tasks: vec!["sdxl-1/r0/distill/mid\u{1b}[2J".into()],
                ..v1::WorkerStatus::default()
            }],
            events: vec![v1::Event { message: "node-a joined".into(), ..v1::Event::default() }],
            status: Some(v1::JobStatus {
                summary: Some(summary),
                stages: vec![stage],
                layers: vec![layer],
                waiting_for: "a worker with 80 GB".into(),
                ..v1::JobStatus::default()
            }),
        }
    }

    fn app(view: &[KeyCode]) -> App {
        let mut app = App::new("http://a:7433".into(), None, false);
        app.see(Ok(seen()));
        for code in view {
            app.press(KeyEvent::new(*code, KeyModifiers::NONE));
            app.see(Ok(seen()));
        }
        app
    }

    #[test]
    fn every_view_shows_what_was_seen() {
        let jobs = drawn(&app(&[]), 140, 20);
        for part in ["sdxl-1", "running", "distill", "━━━━━━━━────────  50 %", "2.5 GB/s in", "node-a joined"]
        {
            assert!(jobs.contains(part), "{part}\n{jobs}");
        }
        let job = drawn(&app(&[KeyCode::Enter]), 140, 20);
        for part in ["35/70 tasks", "waiting: a worker with 80 GB", "750/1500", "█▄▂▁", "0.01230"] {
            assert!(job.contains(part), "{part}\n{job}");
        }
        let workers = drawn(&app(&[KeyCode::Tab]), 160, 20);
        for part in ["node-a", "NVIDIA H200", "93 %", "61.0 GB/150.0 GB", "64 °C", "512 W", "sdxl-1/r0/distill/mid"] {
            assert!(workers.contains(part), "{part}\n{workers}");
        }
        assert!(drawn(&app(&[KeyCode::Tab, KeyCode::Tab]), 100, 20).contains("node-a joined"));
        assert!(drawn(&app(&[KeyCode::Char('?')]), 100, 20).contains("p pause a job"));
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for view in [&[][..], &[KeyCode::Enter], &[KeyCode::Tab], &[KeyCode::Tab, KeyCode::Tab], &[KeyCode::Char('?')]]
        {
            for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 80)] {
                drawn(&app(view), width, height);
            }
        }
    }
}
