//! `deltaconv top`: jobs, layers, workers and events on the whole terminal.

mod app;
mod draw;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use deltaconv_proto::v1;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use tokio::sync::mpsc;

use crate::args::Connection;
use crate::client::Client;
use crate::error::Error;
use crate::output;
use app::{Action, App, Seen};

/// Terminals are asked for keys so often, so that the thread that does can end.
const LISTEN: Duration = Duration::from_millis(200);
/// Events that are shown, the last ones.
const EVENTS: usize = 200;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The job to begin with
    job: Option<String>,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::duration::parse)]
    every: Duration,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    if !output::is_terminal() {
        return Err(Error::NoTerminal);
    }
    let Arguments { job, every, connection } = arguments;
    // Whoever isn't there is said so on the terminal as it is.
    Client::connect(&connection).await?.jobs().await?;
    let mut app = App::new(connection.coordinator.clone(), job, output::paints());
    let mut keys = keys();
    let mut terminal = ratatui::try_init().map_err(Error::file("draw on", "the terminal"))?;
    let ended = follow(&connection, &mut app, &mut terminal, &mut keys, every).await;
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

async fn follow(
    to: &Connection,
    app: &mut App,
    terminal: &mut ratatui::DefaultTerminal,
    keys: &mut mpsc::UnboundedReceiver<KeyEvent>,
    every: Duration,
) -> Result<(), Error> {
    let (sender, mut looks) = mpsc::channel(1);
    let (wishes, wanted) = tokio::sync::watch::channel(app.wish());
    let looking = tokio::spawn(look(to.clone(), every, wanted, sender));
    let _looking = tokio_util::task::AbortOnDropHandle::new(looking);
    loop {
        terminal.draw(|frame| draw::draw(frame, app)).map_err(Error::file("draw on", "the terminal"))?;
        tokio::select! {
            key = keys.recv() => {
                let Some(key) = key else { return Ok(()) };
                match app.press(key) {
                    Action::None => {}
                    Action::Quit => return Ok(()),
                    change => {
                        let made = make(to, change).await;
                        app.say(made.unwrap_or_else(|error| error.to_string()));
                    }
                }
                // Whoever looks is gone when this is.
                let _ = wishes.send(app.wish());
            }
            seen = looks.recv() => if let Some(seen) = seen {
                app.see(seen);
            }
        }
    }
}

/// The keys that are pressed, from a thread of its own: terminals block.
fn keys() -> mpsc::UnboundedReceiver<KeyEvent> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(LISTEN).and_then(|there| there.then(event::read).transpose()) {
                Ok(Some(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if sender.send(key).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Looks at the coordinator again and again; one that is away is waited for, and that is told.
async fn look(
    to: Connection,
    every: Duration,
    mut wanted: tokio::sync::watch::Receiver<Option<String>>,
    sender: mpsc::Sender<Result<Seen, Error>>,
) {
    let mut events = Vec::new();
    loop {
        let job = wanted.borrow_and_update().clone();
        if sender.send(once(&to, job, &mut events).await).await.is_err() {
            return;
        }
        // Who turns to another job wants to see it at once.
        let _ = tokio::time::timeout(every, wanted.changed()).await;
    }
}

async fn once(to: &Connection, job: Option<String>, events: &mut Vec<v1::Event>) -> Result<Seen, Error> {
    let mut client = Client::connect(to).await?;
    let after = events.last().map_or(0, |event| event.sequence);
    let mut happened = client.events(v1::EventsRequest { after, ..v1::EventsRequest::default() }).await?;
    while let Some(event) = happened.next_or_end().await? {
        events.push(event);
    }
    events.drain(..events.len().saturating_sub(EVENTS));
    let status = match &job {
        Some(job) => Some(client.job(job).await?),
        None => None,
    };
    Ok(Seen {
        jobs: client.jobs().await?.jobs,
        workers: client.workers().await?.workers,
        events: events.clone(),
        status,
    })
}

async fn make(to: &Connection, action: Action) -> Result<String, Error> {
    let mut client = Client::connect(to).await?;
    Ok(match action {
        Action::None | Action::Quit => String::new(),
        Action::Pause(job) => {
            client.pause(&job).await?;
            format!("{job} is paused")
        }
        Action::Resume(job) => {
            client.resume(&job).await?;
            format!("{job} goes on")
        }
        Action::Drain(worker) => {
            client.drain(&worker).await?;
            format!("{worker} is given nothing new")
        }
        Action::Return(worker) => {
            client.give_again(&worker).await?;
            format!("{worker} is given tasks again")
        }
    })
}
