//! `deltaconv certs`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use deltaconv_coordinator::{Authority, AuthorityError, Issued};
use deltaconv_proto::tls::{Bundle, Certificate, Identity, Role, write_secret};
use deltaconv_proto::utc;
use serde::Serialize;

use crate::args::Output;
use crate::error::Error;
use crate::{duration, output, table};

/// The authority's certificate, as files name it.
pub(crate) const AUTHORITY: &str = "authority.pem";
const AUTHORITY_KEY: &str = "authority.key";
/// The coordinator's.
pub(crate) const COORDINATOR: &str = "coordinator.pem";
/// Its key.
pub(crate) const COORDINATOR_KEY: &str = "coordinator.key";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What is done with certificates.
#[derive(Debug, Subcommand)]
enum Command {
    /// Make a private authority, and certificates for a coordinator, an operator and a viewer
    #[command(after_help = "Examples:\n\
        \x20 deltaconv certs init --out certs --host coordinator.example.org --host 10.0.0.5\n\
        \x20 deltaconv coordinator --state state --certs certs --listen 0.0.0.0:7433 --allow-store s3://bucket/jobs")]
    Init(Init),
    /// Make a certificate for a person or a program, and print it with its key and the authority
    #[command(after_help = "Examples:\n\
        \x20 deltaconv certs issue operator alice --dir certs > alice.pem\n\
        \x20 deltaconv certs issue viewer prometheus --dir certs --valid 90d > prometheus.pem")]
    Issue(Issue),
    /// Make the coordinator's certificate anew; one that runs takes it by itself
    #[command(after_help = "Examples:\n\
        \x20 deltaconv certs renew --dir certs\n\
        \x20 deltaconv certs renew --dir certs --host new.example.org")]
    Renew(Renew),
    /// Say whom certificates are for, who signed them, and when they end
    #[command(after_help = "Examples:\n  deltaconv certs show certs/*.pem")]
    Show(Show),
}

#[derive(Debug, Args)]
struct Init {
    /// Folder for them; made if it isn't there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name or address by which others call the coordinator; once for each
    #[arg(long = "host", value_name = "HOST", required = true)]
    hosts: Vec<String>,
    /// How long they last; the authority lasts ten years
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration::parse)]
    valid: Duration,
    /// Change nothing where there are some already, for what calls this at each start
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Args)]
struct Issue {
    /// What it may do
    role: Person,
    /// Who it is: letters, digits, '.', '_', '@' and '-'
    name: String,
    /// Folder with authority.pem and authority.key, as `deltaconv certs init` made it
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// How long it lasts
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration::parse)]
    valid: Duration,
}

/// Roles of people; workers are invited.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Person {
    /// Submits, changes and cancels jobs, invites workers
    Operator,
    /// Looks
    Viewer,
}

#[derive(Debug, Args)]
struct Renew {
    /// Folder with the authority and the coordinator's certificate
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Name or address by which others call the coordinator [default: those that its certificate has]
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// How long it lasts
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = duration::parse)]
    valid: Duration,
}

#[derive(Debug, Args)]
struct Show {
    /// Files in PEM
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// What certificates say.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Shown {
    certificates: Vec<ShownOne>,
}

/// What one certificate says.
#[derive(Serialize, schemars::JsonSchema)]
struct ShownOne {
    file: String,
    subject: String,
    /// As "operator:alice".
    identity: Option<String>,
    hosts: Vec<String>,
    authority: bool,
    not_before_unix: i64,
    not_after_unix: i64,
    serial: String,
    /// SHA-256 of its DER.
    fingerprint: String,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match arguments.command {
        Command::Init(arguments) => init(&arguments),
        Command::Issue(arguments) => issue(arguments),
        Command::Renew(arguments) => renew(arguments),
        Command::Show(arguments) => show(arguments),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn failed(error: &AuthorityError) -> Error {
    Error::Certificates { message: error.to_string(), code: error.code() }
}

fn of_files(error: &deltaconv_proto::tls::Error) -> Error {
    Error::Certificates { message: error.to_string(), code: error.code() }
}

fn init(arguments: &Init) -> Result<(), Error> {
    let Init { out, hosts, valid, once } = arguments;
    let certificate = out.join(AUTHORITY);
    if certificate.exists() {
        if *once {
            output::say(&format!("{} is there already, and stays", certificate.display()));
            return Ok(());
        }
        let reason = "is there already: whoever trusts it would trust nothing of another; name another folder with --out, or \
                      make single certificates with `deltaconv certs issue` and `deltaconv certs renew`";
        return Err(of_files(&deltaconv_proto::tls::Error::Contents { path: certificate, reason: reason.into() }));
    }
    std::fs::create_dir_all(out).map_err(Error::file("make", out))?;
    let first = hosts.first().map_or("", String::as_str);
    // Two for the same host are two, also to who reads their names.
    let number = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let (authority, key) =
        Authority::make(&format!("deltaconv authority of {first}, {number}")).map_err(|e| failed(&e))?;
    // Hosts that are none are refused before anything lies there.
    let server = authority.server(hosts, *valid).map_err(|error| failed(&error))?;
    let of = |role: Role| bundle(&authority, role, role.name(), *valid);
    let (operator, viewer) = (of(Role::Operator)?, of(Role::Viewer)?);
    write(out, AUTHORITY_KEY, &key)?;
    write_server(out, &authority, &server)?;
    write(out, "operator.pem", &operator)?;
    write(out, "viewer.pem", &viewer)?;
    // Last: that it is there says that all is.
    write(out, AUTHORITY, authority.pem())?;
    let folder = out.display();
    output::print(&format!(
        "{folder}/{AUTHORITY_KEY}   signs everything else: keep it where nobody gets at it, the coordinator does without\n\
         {folder}/{AUTHORITY}, {COORDINATOR}, {COORDINATOR_KEY}   for the coordinator: --certs {folder}\n\
         {folder}/operator.pem   for who submits: --credentials, or DELTACONV_CREDENTIALS\n\
         {folder}/viewer.pem   for who looks, such as Prometheus"
    ));
    output::say("workers need none of them: `deltaconv workers invite`");
    Ok(())
}

/// Certificate, key and authority, in one text.
fn bundle(authority: &Authority, role: Role, name: &str, valid: Duration) -> Result<String, Error> {
    let identity = Identity::new(role, name);
    let identity = identity.map_err(|error| failed(&AuthorityError::Identity(error)))?;
    let Issued { certificate, key } = authority.client(&identity, valid).map_err(|error| failed(&error))?;
    Ok([certificate.as_str(), key.as_str(), authority.pem()].concat())
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    write_secret(&path, text).map_err(Error::file("write", &path))
}

fn write_server(folder: &Path, authority: &Authority, issued: &Issued) -> Result<(), Error> {
    // One that runs reads both again, and keeps what it has while they don't go together.
    write(folder, COORDINATOR_KEY, &issued.key)?;
    // Workers know the coordinator by the authority in its chain.
    write(folder, COORDINATOR, &[issued.certificate.as_str(), authority.pem()].concat())
}

fn authority(folder: &Path) -> Result<Authority, Error> {
    Authority::open(&folder.join(AUTHORITY), &folder.join(AUTHORITY_KEY)).map_err(|error| failed(&error))
}

fn issue(arguments: Issue) -> Result<(), Error> {
    let role = match arguments.role {
        Person::Operator => Role::Operator,
        Person::Viewer => Role::Viewer,
    };
    let text = bundle(&authority(&arguments.dir)?, role, &arguments.name, arguments.valid)?;
    output::print(text.trim_end());
    if output::is_terminal() {
        output::say("this holds a private key: write it to a file with > FILE");
    }
    Ok(())
}

fn renew(arguments: Renew) -> Result<(), Error> {
    let Renew { dir, mut hosts, valid } = arguments;
    let authority = authority(&dir)?;
    if hosts.is_empty() {
        let path = dir.join(COORDINATOR);
        hosts = read(&path)?.into_iter().next().map(|certificate| certificate.hosts).unwrap_or_default();
    }
    let issued = authority.server(&hosts, valid).map_err(|error| failed(&error))?;
    write_server(&dir, &authority, &issued)?;
    output::print(&format!("{} is for {}", dir.join(COORDINATOR).display(), hosts.join(", ")));
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Certificate>, Error> {
    let bundle = Bundle::read(path).map_err(|error| of_files(&error))?;
    let parsed = bundle.certificates.iter().map(|der| Certificate::parse(der)).collect::<Result<_, _>>();
    parsed.map_err(|reason| of_files(&deltaconv_proto::tls::Error::Contents { path: path.into(), reason }))
}

fn show(arguments: Show) -> Result<(), Error> {
    let mut shown = Vec::new();
    for path in &arguments.files {
        for certificate in read(path)? {
            shown.push(ShownOne {
                file: path.display().to_string(),
                subject: certificate.subject,
                identity: certificate.identity.map(|identity| identity.to_string()),
                hosts: certificate.hosts,
                authority: certificate.is_authority,
                not_before_unix: certificate.not_before,
                not_after_unix: certificate.not_after,
                serial: certificate.serial,
                fingerprint: certificate.fingerprint.to_string(),
            });
        }
    }
    match arguments.output.data() {
        Some(data) => data.print(&Shown { certificates: shown }),
        None => output::print(&describe(&shown, arguments.output.is_wide())),
    }
    Ok(())
}

fn describe(shown: &[ShownOne], wide: bool) -> String {
    let mut columns = vec!["file", "for", "signed", "ends"];
    if wide {
        columns.extend(["serial", "sha-256"]);
    }
    let mut listing = table::with_headings(columns.iter().map(|column| column.to_uppercase()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    for one in shown {
        let whom = match (&one.identity, one.hosts.is_empty()) {
            (Some(identity), _) => identity.clone(),
            (None, false) => one.hosts.join(", "),
            (None, true) if one.authority => "authority".to_owned(),
            (None, true) => one.subject.clone(),
        };
        let time = |unix: i64| utc(unix.max(0) as u64 * 1000);
        let left = one.not_after_unix - now;
        let end = match left {
            ..=0 => format!("{} (over)", time(one.not_after_unix)),
            _ => format!("{} (in {} days)", time(one.not_after_unix), left / 86_400),
        };
        let mut row = vec![one.file.clone(), whom, time(one.not_before_unix), end];
        if wide {
            row.extend([one.serial.clone(), one.fingerprint.clone()]);
        }
        listing.add_row(row);
    }
    table::text(&listing)
}
