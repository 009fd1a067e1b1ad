//! `deltaconv workers`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use deltaconv_proto::tls::{Fingerprint, Invitation, write_secret};
use deltaconv_proto::{utc, v1};
use serde::Serialize;

use super::interrupted;
use crate::args::{Confirmation, Connection, Output, Refresh};
use crate::client::Client;
use crate::error::Error;
use crate::{duration, location, output, refresh, table};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    refresh: Refresh,
}

/// What becomes of workers.
#[derive(Debug, Subcommand)]
enum Change {
    /// Print what another machine joins with: one line for `deltaconv worker`, and nothing else is set there
    #[command(after_help = "Examples:\n\
        \x20 deltaconv workers invite\n\
        \x20 deltaconv workers invite --uses 8 --expires 2h > invitation\n\
        \x20 deltaconv workers invite --uses unlimited --expires 30d --address https://coordinator.example.org:7433")]
    Invite(Invite),
    /// List invitations, and who came by them
    #[command(after_help = "Examples:\n  deltaconv workers invitations")]
    Invitations(Invitations),
    /// End an invitation, or have a worker, an operator or a viewer accepted no more
    #[command(
        after_help = "Examples:\n  deltaconv workers revoke inv3-4f1c\n  deltaconv workers revoke operator:alice --yes"
    )]
    Revoke(Revoke),
    /// Give a worker nothing new: it ends what it does
    #[command(after_help = "Examples:\n  deltaconv workers drain gpu-7")]
    Drain(Named),
    /// Give tasks again to a worker that was drained, or to a machine that was taken out
    #[command(after_help = "Examples:\n  deltaconv workers return gpu-7")]
    Return(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// By its id, or all of a name or of a machine
    worker: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// For whoever starts workers.
#[derive(Debug, Args)]
struct Invite {
    /// How long it can be taken
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
    expires: Duration,
    /// How many workers may take it: a number, or `unlimited`
    #[arg(long, value_name = "N", default_value = "1", value_parser = uses)]
    uses: u32,
    /// The coordinator's URL as the other machine reaches it; once for each, tried in their order [default: as this one does]
    #[arg(long = "address", value_name = "URL")]
    addresses: Vec<String>,
    /// Write it to this file, which its owner alone can read, in place of the terminal
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Invitations {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Revoke {
    /// An invitation's id, or whom: worker:…, operator:… or viewer:…
    id: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    confirmation: Confirmation,
}

fn uses(text: &str) -> Result<u32, String> {
    match text {
        "unlimited" => Ok(0),
        text => match text.parse() {
            Ok(0) | Err(_) => Err("write a number from 1 on, or `unlimited`".into()),
            Ok(uses) => Ok(uses),
        },
    }
}

/// What another machine needs to join.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Invited {
    /// The one line. Whoever has it can join. Empty where a file has it.
    invitation: String,
    id: String,
    addresses: Vec<String>,
    expires_unix_ms: u64,
    /// 0 for as many as want.
    uses: u32,
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    let (to, listed, output) = match arguments.change {
        None => {
            let to = &arguments.connection;
            let ask = async || Client::connect(to).await?.workers().await;
            let shown = refresh::show(arguments.refresh, arguments.output, ask, |listed, wide| show(to, listed, wide));
            return Ok(shown.await?.map_or_else(interrupted, |_| ExitCode::SUCCESS));
        }
        Some(Change::Invite(arguments)) => return invite(arguments).await,
        Some(Change::Invitations(arguments)) => {
            let listed = Client::connect(&arguments.connection).await?.access().await?;
            show_access(&listed, arguments.output);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Change::Revoke(arguments)) => {
            arguments.confirmation.ask(&format!("revoke {} for good", arguments.id))?;
            let listed = Client::connect(&arguments.connection).await?.revoke(&arguments.id).await?;
            show_access(&listed, arguments.output);
            return Ok(ExitCode::SUCCESS);
        }
        Some(Change::Drain(named)) => {
            let listed = Client::connect(&named.connection).await?.drain(&named.worker).await?;
            (named.connection, listed, named.output)
        }
        Some(Change::Return(named)) => {
            let listed = Client::connect(&named.connection).await?.give_again(&named.worker).await?;
            (named.connection, listed, named.output)
        }
    };
    match output.data() {
        Some(data) => data.print(&listed),
        None => show(&to, &listed, output.is_wide()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn invite(arguments: Invite) -> Result<ExitCode, Error> {
    let Invite { expires, uses, mut addresses, out, connection, output } = arguments;
    if addresses.is_empty() {
        addresses.push(connection.coordinator.clone());
    }
    let request = v1::InviteRequest { valid_ms: expires.as_millis() as u64, uses };
    let invited = Client::connect(&connection).await?.invite(request).await?;
    let unlike = |part| Error::Incomplete { url: connection.coordinator.clone(), part };
    let status = invited.invitation.ok_or_else(|| unlike("invitation"))?;
    let authority = match &invited.authority[..] {
        [] => None,
        bytes => Some(Fingerprint(<[u8; 32]>::try_from(bytes).map_err(|_| unlike("authority"))?)),
    };
    let token = invited.token.parse().map_err(|_| unlike("token"))?;
    let invitation = Invitation { addresses: addresses.clone(), authority, token }.reveal();
    // What no worker would take is not given to one.
    if let Err(error) = invitation.parse::<Invitation>() {
        let message = format!("{error}: with TLS, every --address begins with https://, and without with http://");
        return Err(Error::Invitation { message });
    }
    let invitation = match &out {
        Some(path) => {
            write_secret(path, &format!("{invitation}\n")).map_err(Error::file("write", path))?;
            String::new()
        }
        None => invitation,
    };
    let is_here = |address: &String| url::Url::parse(address).is_ok_and(|url| location::is_loopback(&url));
    match output.data() {
        Some(data) => data.print(&Invited {
            invitation,
            id: status.id,
            addresses: addresses.clone(),
            expires_unix_ms: status.expires_unix_ms,
            uses: status.uses,
        }),
        None => {
            if out.is_none() {
                output::print(&invitation);
            }
            let times = match status.uses {
                0 => "any number of workers".to_owned(),
                1 => "one worker".to_owned(),
                uses => format!("{uses} workers"),
            };
            output::say(&format!(
                "{} for {times}, until {}; start each with `deltaconv worker --invitation-file FILE`, or with the line in \
                 DELTACONV_INVITATION",
                status.id,
                utc(status.expires_unix_ms)
            ));
        }
    }
    if addresses.iter().all(is_here) {
        output::say("that URL is of this machine alone: name the one that others reach with --address URL");
    }
    Ok(ExitCode::SUCCESS)
}

fn show_access(listed: &v1::ListAccessResponse, output: Output) {
    if let Some(data) = output.data() {
        return data.print(listed);
    }
    let mut invitations =
        table::with_headings(["INVITATION", "BY", "MADE", "UNTIL", "TAKEN", "STATE"].map(String::from));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    for invitation in &listed.invitations {
        let state = match invitation {
            v1::InvitationStatus { revoked: true, .. } => "revoked",
            invitation if invitation.expires_unix_ms <= now => "over",
            invitation if invitation.uses > 0 && invitation.used >= invitation.uses => "taken",
            _ => "open",
        };
        let of = if invitation.uses == 0 { "unlimited".to_owned() } else { invitation.uses.to_string() };
        invitations.add_row([
            invitation.id.clone(),
            invitation.by.clone(),
            utc(invitation.created_unix_ms),
            utc(invitation.expires_unix_ms),
            format!("{} of {of}", invitation.used),
            state.to_owned(),
        ]);
    }
    let mut identities =
        table::with_headings(["WHO", "NAME", "INVITATION", "SINCE", "UNTIL", "STATE"].map(String::from));
    for identity in &listed.identities {
        let until = if identity.expires_unix_ms == 0 { "–".to_owned() } else { utc(identity.expires_unix_ms) };
        identities.add_row([
            identity.identity.clone(),
            identity.name.clone(),
            identity.invitation.clone(),
            utc(identity.created_unix_ms),
            until,
            if identity.revoked { "revoked" } else { "accepted" }.to_owned(),
        ]);
    }
    match listed.invitations.is_empty() {
        true => output::say("nobody was invited; `deltaconv workers invite` does"),
        false => output::print(&table::text(&invitations)),
    }
    if !listed.identities.is_empty() {
        output::print(&table::text(&identities));
    }
}

fn show(to: &Connection, listed: &v1::ListWorkersResponse, wide: bool) {
    match &listed.workers[..] {
        [] => output::say(&format!("{to} has no workers; `deltaconv workers invite` shows how one joins")),
        workers => output::print(&describe(workers, wide)),
    }
}

fn describe(workers: &[v1::WorkerStatus], wide: bool) -> String {
    let mut columns = vec!["worker", "name", "machine", "state", "device", "load", "memory", "heard", "tasks"];
    if wide {
        columns.extend(["of", "temperature", "power", "reads", "writes", "threads", "cached shards", "version"]);
    }
    let mut listing = table::with_headings(columns.iter().map(|column| column.to_uppercase()));
    for worker in workers {
        let device = worker.device.clone().unwrap_or_default();
        let load = worker.load.unwrap_or_default();
        let [share, used] = busy(&device, &load);
        let mut row = vec![
            worker.worker_id.clone(),
            worker.name.clone(),
            worker.node.clone(),
            worker.state.clone(),
            format!("{} {}", device.kind, device.name),
            share,
            used,
            format!("{} ago", duration::spell(worker.silent_ms as f64 / 1000.0)),
            if worker.reason.is_empty() { worker.tasks.join(", ") } else { table::one_line(&worker.reason) },
        ];
        if wide {
            let rate = |rate: f64| table::figure(rate, |rate| format!("{}/s", table::bytes(rate as u64)));
            row.extend([
                table::bytes(device.memory_bytes),
                table::figure(load.gpu_temperature.unwrap_or(f64::NAN), |degrees| format!("{degrees:.0} °C")),
                table::figure(load.gpu_power.unwrap_or(f64::NAN), |watts| format!("{watts:.0} W")),
                rate(load.read_bytes_per_second),
                rate(load.written_bytes_per_second),
                device.threads.to_string(),
                worker.cached_shards.to_string(),
                worker.version.clone(),
            ]);
        }
        listing.add_row(row);
    }
    let numbers = ["load", "memory", "of", "temperature", "power", "reads", "writes", "threads", "cached shards"];
    let numbers: Vec<usize> = (0..columns.len()).filter(|index| numbers.contains(&columns[*index])).collect();
    table::numbers(&mut listing, &numbers);
    table::text(&listing)
}

/// Of the device that a worker computes on: the share of time in which it is at work, and the memory that is used.
pub(crate) fn busy(device: &v1::Device, load: &v1::Load) -> [String; 2] {
    let (share, used) = match device.kind == v1::Device::CUDA {
        true => (load.gpu_utilisation, load.gpu_memory_used_bytes),
        false => (load.cpu_utilisation, load.memory_used_bytes),
    };
    [share.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share)), used.map_or("–".to_owned(), table::bytes)]
}
