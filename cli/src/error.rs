//! What went wrong, with which value, and what to do next.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use deltaconv_proto::code::Code;

/// Why a command could not do what was asked.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub(crate) enum Error {
    #[error("cannot start: {source}")]
    Runtime { source: io::Error },

    #[error("{url:?} is not the URL of a coordinator: {reason}")]
    #[diagnostic(help(
        "write https://HOST:PORT, or http://HOST:PORT of one without TLS, as `deltaconv coordinator` says it when it starts"
    ))]
    CoordinatorUrl { url: String, reason: String },

    #[error("no coordinator answers at {url}: {reason}")]
    #[diagnostic(help(
        "start one with `deltaconv coordinator --state DIR`, or name another with --coordinator URL or \
         DELTACONV_COORDINATOR"
    ))]
    Unreachable { url: String, reason: String },

    #[error("the coordinator at {url} is not trusted, or doesn't trust this client: {reason}")]
    #[diagnostic(help("`deltaconv certs show FILE` says whom a certificate is for, who signed it, and when it ends"))]
    Untrusted { url: String, reason: String },

    #[error("the coordinator at {url} is not called: {reason}")]
    #[diagnostic(help(
        "give the coordinator certificates (`deltaconv certs init`) and write https://; or, in a network where nobody else is, \
         allow it with --allow-plaintext"
    ))]
    PlainCalls { url: String, reason: String },

    #[error("{message}")]
    #[diagnostic(help(
        "--credentials FILE holds your certificate, its key and the coordinator's authority, as `deltaconv certs issue` makes it"
    ))]
    Credentials { message: String, code: Code },

    #[error("{message}")]
    #[diagnostic(help("have one made with `deltaconv workers invite`"))]
    Invitation { message: String },

    #[error("{message}")]
    Stores { message: String, code: Code },

    #[error("{message}")]
    Certificates { message: String, code: Code },

    /// What the coordinator answered, as it wrote it.
    #[error("{message}")]
    Refused { message: String, code: Code },

    #[error("the answer of the coordinator at {url} lacks its {part}")]
    #[diagnostic(help("is the coordinator of another version? `deltaconv --version` must say the same on both sides"))]
    Incomplete { url: String, part: &'static str },

    #[error(
        "--listen {address} can be reached from other machines, and without certificates nothing is encrypted and \
         everybody may submit"
    )]
    #[diagnostic(help(
        "make certificates with `deltaconv certs init --out DIR --host NAME` and name them with --certs DIR; or listen on \
         127.0.0.1, or, in a network where nobody else is, allow it with --allow-plaintext"
    ))]
    Plaintext { address: std::net::SocketAddr },

    #[error("--listen {address} can be reached from other machines, and a worker's figures are not encrypted")]
    #[diagnostic(help("listen on 127.0.0.1, or, where that is no harm, allow it with --allow-plaintext"))]
    PlainFigures { address: std::net::SocketAddr },

    #[cfg_attr(
        not(any(feature = "webhook", feature = "otlp")),
        allow(dead_code, reason = "nothing is sent to web servers")
    )]
    #[error("{flag} sends to {host} without encryption, where others may read it")]
    #[diagnostic(help("write an https:// URL, or, where that is no harm, allow it with {allow}"))]
    PlainUrl { flag: &'static str, host: String, allow: &'static str },

    #[error("--listen can be reached from other machines, and nothing says which places jobs may read and write")]
    #[diagnostic(help(
        "name them with --allow-store URL, once for each, such as s3://bucket/folder; `any` allows every place"
    ))]
    NoStores,

    #[error("{what}: not without being asked for once more")]
    #[diagnostic(help("say --yes"))]
    Unconfirmed { what: String },

    #[error("nothing was done")]
    Declined,

    #[cfg(feature = "otlp")]
    #[error("traces can't be sent to {url:?}: {reason}")]
    #[diagnostic(help(
        "write https://HOST:4317, where the collector takes OTLP over gRPC; --otlp-authority FILE has who signed its certificate"
    ))]
    Otlp { url: String, reason: String },

    #[error("top draws on a terminal, and stdout is none")]
    #[diagnostic(help("`deltaconv watch JOB` and `deltaconv jobs --watch` write lines"))]
    NoTerminal,

    #[error("a coordinator needs a folder for its durable state")]
    #[diagnostic(help("name one with --state DIR; it is made if it isn't there"))]
    NoState,

    #[error("{}: {reason}", path.display())]
    #[diagnostic(help("`deltaconv config show` lists all settings; docs/reference/config.md explains them"))]
    Config { path: PathBuf, reason: String },

    #[error("{}", reason.trim().trim_start_matches("error: "))]
    Settings { reason: String },

    #[error("{name:?} is no command with settings")]
    #[diagnostic(help("`deltaconv help` lists the commands"))]
    NoSuchCommand { name: String },

    #[error("objects that could not be removed: {objects}; of the first: {reason}")]
    #[diagnostic(help("put right what the store says, and run it again: it goes on with what is left"))]
    NotRemoved { objects: u64, reason: String },

    #[error("the report of {job} is not as expected: {source}")]
    #[diagnostic(help("`deltaconv report {job} -o json` shows it as it is; another version may have written it"))]
    Report { job: String, source: serde_json::Error },

    #[error("{message}")]
    Coordinator { message: String, code: Code },

    #[error("{message}")]
    Worker { message: String, code: Code },

    #[error("{message}")]
    Bench { message: String, code: Code },

    #[error("{message}")]
    Model { message: String, code: Code },

    #[error("{text:?} is no code of an error")]
    #[diagnostic(help("{}`deltaconv explain-error` lists all of them", nearest(*near)))]
    UnknownCode { text: String, near: Option<Code> },

    #[error("--samples {samples} need data, and {url} holds none")]
    #[diagnostic(help(
        "name a folder with latents.safetensors and prompt_embeddings.safetensors with --data, or leave out --samples"
    ))]
    NoData { samples: u32, url: String },

    #[error("{flag} writes what was seen of the attention, and no sample is looked at")]
    #[diagnostic(help("name the teacher's data with --data URL, or ask for samples with --samples N"))]
    NoSamples { flag: &'static str },

    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },

    #[error("{} is not a job: {reason}", path.display())]
    JobFile { path: PathBuf, reason: String },

    #[error("{path:?} can't be written as a URL")]
    #[diagnostic(help("paths must be UTF-8; rename the folder, or give a URL such as file:///folder"))]
    Location { path: String },

    #[error("{} exists and is no demo of deltaconv: it holds {found:?}", folder.display())]
    #[diagnostic(help("name another folder with --out, or move what is there away"))]
    NotADemo { folder: PathBuf, found: String },

    #[error("a demo is running in {} already", folder.display())]
    #[diagnostic(help("wait for it or end it with Ctrl-C there, or name another folder with --out"))]
    DemoRunning { folder: PathBuf },

    #[error("{} holds a demo with {held}, and this one is with {asked}", folder.display())]
    #[diagnostic(help("run it with the same settings, name another folder with --out, or remove {}", folder.display()))]
    OtherDemo { folder: PathBuf, held: String, asked: String },

    #[error("{} belongs to a finished demo and is gone", path.display())]
    #[diagnostic(help("remove {} to convert again", folder.display()))]
    OutcomeGone { path: PathBuf, folder: PathBuf },

    #[error("{program} can't be run: {source}")]
    #[diagnostic(help("run this where Slurm's commands are, as on a login node, or add their folder to PATH"))]
    NoSlurm { program: &'static str, source: io::Error },

    #[error("{program}: {said}")]
    #[diagnostic(help(
        "put right what Slurm says; `sinfo` shows whether it answers, and `deltaconv alloc slurm` with --dry-run what it \
         is asked"
    ))]
    Slurm { program: &'static str, said: String },

    #[error("Slurm has job {job} under the name {listed:?}, and it was submitted as {name:?}")]
    #[diagnostic(help("something renames jobs here; give them a name with --name that it leaves alone"))]
    SlurmRenamed { job: String, listed: String, name: String },

    #[error("nothing is given to workers to join with")]
    #[diagnostic(help("name a file that all machines see, with --invitation-file or --token-file"))]
    NoAdmission,
    #[error("{url} holds {found:?}, which is not the shipped teacher's")]
    #[diagnostic(help("name an empty or new folder with --out: a teacher's is copied whole into the converted model"))]
    OtherModel { url: String, found: String },

    #[error("{url} is a whole store")]
    #[diagnostic(help("name a folder in it with --out, such as {url}/teacher"))]
    NoFolder { url: String },

    #[error("lost sight of {name}: {source}")]
    Lost { name: String, source: io::Error },

    #[error("{name} could not be kept running ({status}, started {starts} times): {last_words}")]
    #[diagnostic(help("{} tells more; the same command again goes on where this one stopped", log.display()))]
    KeepsEnding { name: String, status: String, starts: u32, last_words: String, log: PathBuf },

    #[error("the coordinator did not listen within {seconds} s")]
    #[diagnostic(help("{} may say why", log.display()))]
    NotListening { seconds: u64, log: PathBuf },
}

impl Error {
    /// Fits [`Result::map_err`]: what could not be done to which file.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Names the cause, and what helps.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Runtime { .. } => Code::NotStarted,
            Self::CoordinatorUrl { .. } => Code::CoordinatorUrl,
            Self::Unreachable { .. } => Code::Unreachable,
            Self::Untrusted { .. } => Code::Untrusted,
            Self::Invitation { .. } => Code::Invitation,
            Self::NoStores => Code::StoreNotAllowed,
            Self::Incomplete { .. } | Self::Report { .. } => Code::VersionsDiffer,
            Self::Plaintext { .. } | Self::PlainCalls { .. } | Self::PlainFigures { .. } | Self::PlainUrl { .. } => {
                Code::Plaintext
            }
            Self::NotRemoved { .. } => Code::NotRemoved,
            Self::Refused { code, .. }
            | Self::Credentials { code, .. }
            | Self::Certificates { code, .. }
            | Self::Stores { code, .. }
            | Self::Coordinator { code, .. }
            | Self::Worker { code, .. }
            | Self::Bench { code, .. }
            | Self::Model { code, .. } => *code,
            Self::UnknownCode { .. } => Code::UnknownCode,
            Self::Unconfirmed { .. } => Code::Unconfirmed,
            Self::Declined => Code::Declined,
            #[cfg(feature = "otlp")]
            Self::Otlp { .. } => Code::NotStarted,
            Self::NoTerminal => Code::NoTerminal,
            Self::NoState => Code::StateNotNamed,
            Self::Config { .. } | Self::Settings { .. } | Self::NoSuchCommand { .. } => Code::Settings,
            Self::NoData { .. } | Self::NoSamples { .. } => Code::NothingObserved,
            Self::File { .. } => Code::File,
            Self::JobFile { .. } => Code::JobFile,
            Self::Location { .. } => Code::Path,
            Self::NotADemo { .. } | Self::OtherDemo { .. } => Code::OtherDemo,
            Self::DemoRunning { .. } => Code::DemoRunning,
            Self::OutcomeGone { .. } => Code::DemoOutcome,
            Self::NoSlurm { .. } => Code::SlurmMissing,
            Self::Slurm { .. } => Code::SlurmFailed,
            Self::SlurmRenamed { .. } => Code::SlurmRenamed,
            Self::NoAdmission => Code::TokenFile,
            Self::OtherModel { .. } => Code::OtherModel,
            Self::NoFolder { .. } => Code::StoreSettings,
            Self::Lost { .. } | Self::KeepsEnding { .. } | Self::NotListening { .. } => Code::DemoProcess,
        }
    }

    /// Whether trying again may help, because nobody answered.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

fn nearest(code: Option<Code>) -> String {
    code.map(|code| format!("the nearest is {code} ({}); ", code.entry().title)).unwrap_or_default()
}

/// An error with its causes, in one line. Many messages quote their cause; it is not said twice.
pub(crate) fn explain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn causes_are_said_once() {
        let root = Link { text: "disk full", source: None };
        let middle = Link { text: "a/b: disk full", source: Some(Box::new(root)) };
        let top = Link { text: "cannot write", source: Some(Box::new(middle)) };
        assert_eq!(explain(&top), "cannot write: a/b: disk full");
    }
}
