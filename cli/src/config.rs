//! Settings from a file: what flags and the environment leave open. The settings are the commands' own flags, by their names, so
//! that there is one tree of them, with one type each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command};
use serde::Serialize;
use toml::{Table, Value};

use crate::error::Error;
use crate::said::{self, said};

/// Names the file.
pub(crate) const VARIABLE: &str = "DELTACONV_CONFIG";
/// Settings for every command that has them.
const DEFAULTS: &str = "defaults";
/// No setting's is as long; to compare takes time with each letter.
const LONGEST_NAME: usize = 64;
/// A name is suggested that is so like the one that was written.
const LIKENESS: f64 = 0.75;

/// What a file says.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// None where there is no file.
    pub(crate) path: Option<PathBuf>,
    tables: Table,
}

impl Config {
    /// Reads the file that the arguments or the environment name, or else the first of those in the usual places that is there.
    /// All that it says must be settings of `command`.
    pub(crate) fn find(arguments: &[OsString], command: &Command) -> Result<Self, Error> {
        let named = flag(arguments).or_else(|| std::env::var_os(VARIABLE).filter(|path| !path.is_empty()));
        let path = match named {
            Some(path) => Some(PathBuf::from(path)),
            None => usual().into_iter().find(|path| path.is_file()),
        };
        let Some(path) = path else { return Ok(Self::default()) };
        let text = said::read(&path).map_err(Error::file("read", &path))?;
        let read = Self::of(&text, command).map_err(|reason| Error::Config { path: path.clone(), reason })?;
        Ok(Self { path: Some(path), ..read })
    }

    /// What the text of a file says; otherwise why it is none.
    pub(crate) fn of(text: &str, command: &Command) -> Result<Self, String> {
        let tables = read(text, command).map_err(|reason| said(&reason))?;
        Ok(Self { path: None, tables })
    }

    /// The command, where what the file says takes the place of what the commands' settings are by default.
    pub(crate) fn apply(&self, command: Command) -> Command {
        let defaults = self.tables.get(DEFAULTS).and_then(Value::as_table);
        apply(command, &self.tables, defaults.unwrap_or(&Table::new()))
    }

    /// Every setting of the commands that begin with `path`, and where its value comes from; a command's own arguments are `given`.
    pub(crate) fn settings(
        &self,
        command: &Command,
        path: &[String],
        given: &[OsString],
    ) -> Result<Vec<Setting>, Error> {
        let mut settings = Vec::new();
        self.collect(&self.apply(command.clone()), path, given, String::new(), &mut settings)?;
        Ok(settings)
    }

    fn collect(
        &self,
        command: &Command,
        path: &[String],
        given: &[OsString],
        name: String,
        settings: &mut Vec<Setting>,
    ) -> Result<(), Error> {
        if path.is_empty() && !name.is_empty() {
            settings.extend(self.of_command(command, given, &name)?);
        }
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let (first, rest) = path.split_first().map_or((None, path), |(first, rest)| (Some(first), rest));
            if first.is_none_or(|first| first == below.get_name()) {
                let name = format!("{name} {}", below.get_name()).trim_start().to_owned();
                self.collect(below, rest, given, name, settings)?;
            }
        }
        Ok(())
    }

    fn of_command(&self, command: &Command, given: &[OsString], name: &str) -> Result<Vec<Setting>, Error> {
        // Without what the settings want of each other, which says nothing of where they come from.
        let alone = command.get_arguments().filter(|arg| is_setting(arg)).map(|arg| {
            let alone = Arg::new(arg.get_id().clone()).long(arg.get_long().unwrap_or_default().to_owned());
            let alone = alone.action(arg.get_action().clone()).value_parser(arg.get_value_parser().clone());
            let alone = alone.default_values(arg.get_default_values().iter().cloned());
            match arg.get_env() {
                Some(variable) => alone.env(variable.to_owned()),
                None => alone,
            }
        });
        let parser = Command::new(name.to_owned()).no_binary_name(true).disable_help_flag(true).args(alone);
        let matches = parser.try_get_matches_from(given);
        let matches = matches.map_err(|error| Error::Settings { reason: error.render().to_string() })?;
        let path = self.path.as_deref().map(Path::display).map(|path| path.to_string()).unwrap_or_default();
        let settings = command.get_arguments().filter(|arg| is_setting(arg)).map(|arg| {
            let id = arg.get_id().as_str();
            let raw = matches.get_raw(id).into_iter().flatten();
            let value = if arg.is_hide_env_values_set() {
                hidden(raw.count())
            } else {
                raw.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(",")
            };
            let from_file = self.value(name, &key(arg)).is_some();
            let source = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => "flag".to_owned(),
                Some(ValueSource::EnvVariable) => {
                    format!("environment: {}", arg.get_env().unwrap_or_default().to_string_lossy())
                }
                Some(_) if from_file => format!("file: {path}"),
                _ => "default".to_owned(),
            };
            Setting { command: name.to_owned(), setting: key(arg), value, source }
        });
        Ok(settings.collect())
    }

    /// What the file says of a command's setting.
    fn value(&self, name: &str, key: &str) -> Option<&Value> {
        let table = name.split(' ').try_fold(&self.tables, |table, part| table.get(part)?.as_table());
        let of_command = table.and_then(|table| table.get(key)).filter(|value| !value.is_table());
        of_command.or_else(|| self.tables.get(DEFAULTS)?.as_table()?.get(key))
    }
}

/// A setting's value.
#[derive(Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub(crate) struct Setting {
    /// The command that has it.
    pub(crate) command: String,
    /// As a file names it.
    pub(crate) setting: String,
    /// As it is written; empty where it has none.
    pub(crate) value: String,
    /// "flag", "environment: NAME", "file: PATH" or "default".
    pub(crate) source: String,
}

/// In the place of a value that may be a secret.
fn hidden(values: usize) -> String {
    if values > 0 { "(hidden)".to_owned() } else { String::new() }
}

/// What `--config` names.
fn flag(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().cloned();
        }
        if let Some(path) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

/// Where a file lies that nobody names: the user's, and the machine's.
fn usual() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let user = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    let folders = user.into_iter().chain([PathBuf::from("/etc")]);
    folders.map(|folder| folder.join("deltaconv/config.toml")).collect()
}

/// The name of a flag as a file has it.
pub(crate) fn key(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().replace('-', "_")
}

/// Whether a file may have it: what is said of one call alone can't stand there.
pub(crate) fn is_setting(arg: &Arg) -> bool {
    let of_one_call = ["config", "help", "version", "yes", "dry-run", "once"];
    arg.get_long().is_some_and(|long| !of_one_call.contains(&long)) && !arg.is_hide_set()
}

fn read(text: &str, command: &Command) -> Result<Table, String> {
    let tables: Table = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    for (name, value) in &tables {
        let Value::Table(table) = value else {
            return Err(format!("{name} stands before the first table; settings are below [{DEFAULTS}] or [COMMAND]"));
        };
        if name == DEFAULTS {
            check_defaults(table, command)?;
        } else {
            let below = command.get_subcommands().filter(|below| !below.is_hide_set());
            let below: Vec<&Command> = below.collect();
            match below.iter().find(|below| below.get_name() == name) {
                Some(below) => check(table, below, name)?,
                None => {
                    let names = below.iter().map(|below| below.get_name()).chain([DEFAULTS]);
                    return Err(format!("[{name}] is no command{}", suggestion(name, names)));
                }
            }
        }
    }
    Ok(tables)
}

fn check(table: &Table, command: &Command, path: &str) -> Result<(), String> {
    for (name, value) in table {
        if let Value::Table(below) = value {
            let found = command.get_subcommands().find(|below| below.get_name() == name);
            let names = command.get_subcommands().map(Command::get_name);
            let found = found.ok_or_else(|| format!("[{path}.{name}] is no command{}", suggestion(name, names)))?;
            check(below, found, &format!("{path}.{name}"))?;
            continue;
        }
        let settings: Vec<&Arg> = command.get_arguments().filter(|arg| is_setting(arg)).collect();
        match settings.iter().find(|arg| key(arg) == *name) {
            Some(arg) => check_value(arg, value).map_err(|reason| format!("{name} of [{path}]: {reason}"))?,
            None => {
                let keys: Vec<String> = settings.iter().map(|arg| key(arg)).collect();
                let suggestion = suggestion(name, keys.iter().map(String::as_str));
                return Err(format!("{name} is no setting of [{path}]{suggestion}"));
            }
        }
    }
    Ok(())
}

fn check_defaults(table: &Table, command: &Command) -> Result<(), String> {
    let mut all = Vec::new();
    settings_below(command, &mut all);
    for (name, value) in table {
        match all.iter().find(|arg| key(arg) == *name) {
            Some(arg) => check_value(arg, value).map_err(|reason| format!("{name} of [{DEFAULTS}]: {reason}"))?,
            None => {
                let keys: Vec<String> = all.iter().map(|arg| key(arg)).collect();
                let suggestion = suggestion(name, keys.iter().map(String::as_str));
                return Err(format!("{name} is no setting of any command{suggestion}"));
            }
        }
    }
    Ok(())
}

fn settings_below<'a>(command: &'a Command, all: &mut Vec<&'a Arg>) {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        all.extend(below.get_arguments().filter(|arg| is_setting(arg)));
        settings_below(below, all);
    }
}

/// Reads a value as the flag would.
fn check_value(arg: &Arg, value: &Value) -> Result<(), String> {
    let values = values(value)?;
    let parser: ValueParser = arg.get_value_parser().clone();
    let action = match arg.get_action() {
        // A flag that is there or not; a file says which.
        ArgAction::SetTrue | ArgAction::SetFalse => ArgAction::Set,
        ArgAction::Set if values.len() > 1 => return Err("one value is expected".to_owned()),
        action => action.clone(),
    };
    let alone = Arg::new("value").long("value").action(action).value_parser(parser);
    let command = Command::new("config").no_binary_name(true).arg(alone);
    let parsed = command.try_get_matches_from(values.iter().map(|value| format!("--value={value}")));
    let first_line = |error: clap::Error| {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        line.trim_start_matches("error: ").replace(" for '--value <value>'", "").replace(" for '--value <VALUE>'", "")
    };
    parsed.map(|_| ()).map_err(first_line)
}

/// As they stand on a command line.
fn values(value: &Value) -> Result<Vec<String>, String> {
    Ok(match value {
        Value::String(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Float(number) => vec![number.to_string()],
        Value::Boolean(flag) => vec![flag.to_string()],
        Value::Array(list) => list.iter().map(values).collect::<Result<Vec<_>, _>>()?.concat(),
        Value::Datetime(_) | Value::Table(_) => return Err(format!("{value} is no value of a setting")),
    })
}

fn apply(command: Command, table: &Table, defaults: &Table) -> Command {
    let ids: Vec<(String, Vec<String>)> = command
        .get_arguments()
        .filter(|arg| is_setting(arg))
        .filter_map(|arg| {
            let said = table.get(&key(arg)).filter(|value| !value.is_table()).or_else(|| defaults.get(&key(arg)));
            // What no value can be made of was refused before.
            said.and_then(|value| Some((arg.get_id().to_string(), values(value).ok()?)))
        })
        .collect();
    let command = ids
        .into_iter()
        .fold(command, |command, (id, values)| command.mut_arg(id, |arg| arg.required(false).default_values(values)));
    let below: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let empty = Table::new();
    below.into_iter().fold(command, |command, name| {
        let table = table.get(&name).and_then(Value::as_table).unwrap_or(&empty);
        command.mut_subcommand(&name, |below| apply(below, table, defaults))
    })
}

/// The name that was probably meant, as the end of a sentence.
fn suggestion<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    if name.len() > LONGEST_NAME {
        return String::new();
    }
    let likeness = |other: &&str| strsim::jaro_winkler(name, other);
    let nearest = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|nearest| likeness(nearest) >= LIKENESS) {
        Some(nearest) => format!("; {nearest} is one"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Arguments;

    fn config(text: &str) -> Config {
        let tables = read(text, &Arguments::command()).expect("a file");
        Config { path: Some("/etc/deltaconv/config.toml".into()), tables }
    }

    fn refused(text: &str) -> String {
        read(text, &Arguments::command()).expect_err("refused")
    }

    fn source(config: &Config, command: &str, setting: &str, given: &[&str]) -> (String, String) {
        let given: Vec<OsString> = given.iter().map(Into::into).collect();
        let path: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let settings = config.settings(&Arguments::command(), &path, &given).expect("settings");
        let found = settings.into_iter().find(|found| found.command == command && found.setting == setting);
        found.map(|found| (found.value, found.source)).expect("the setting")
    }

    #[test]
    fn a_flag_is_before_the_file_and_the_file_before_the_default() {
        let config =
            config("[defaults]\nthreads = 3\n[worker]\ntoken_file = '/t'\ngrace = '40s'\n[bench.kernels]\ncheck = 7\n");
        let in_file = "file: /etc/deltaconv/config.toml".to_owned();
        assert_eq!(source(&config, "worker", "grace", &[]), ("40s".into(), in_file.clone()));
        assert_eq!(source(&config, "worker", "grace", &["--grace", "1s"]), ("1s".into(), "flag".into()));
        assert_eq!(source(&config, "worker", "threads", &[]), ("3".into(), in_file));
        assert_eq!(source(&config, "worker", "device", &[]), ("auto".into(), "default".into()));
        assert_eq!(source(&config, "worker", "name", &[]), (String::new(), "default".into()));

        let parse = |arguments: &[&str]| {
            let command = config.apply(Arguments::command());
            command.try_get_matches_from([&["deltaconv"], arguments].concat())
        };
        // What must be given is given by the file.
        let matches = parse(&["worker", "--name", "w"]).expect("parsed");
        let of_worker = matches.subcommand_matches("worker").expect("worker");
        assert_eq!(of_worker.get_raw("token_file").into_iter().flatten().next(), Some("/t".as_ref()));
    }

    #[test]
    fn what_is_no_setting_is_refused_with_what_was_meant() {
        assert!(
            refused("[worker]\ngrase = '1s'\n").contains("grace is one"),
            "{}",
            refused("[worker]\ngrase = '1s'\n")
        );
        assert!(refused("[wroker]\n").contains("worker is one"));
        assert!(refused("[defaults]\ncordinator = 'http://a'\n").contains("coordinator is one"));
        assert!(refused("coordinator = 'http://a'\n").contains("[defaults]"));
        let wrong = refused("[worker]\ngrace = 'soon'\n");
        assert!(wrong.contains("grace of [worker]") && wrong.contains("soon"), "{wrong}");
        assert!(refused("[worker]\nthreads = [1, 2]\n").contains("one value"));
        assert!(refused("[worker]\nthreads = 0\n").contains("threads of [worker]"));
        assert!(refused("[cancel]\nyes = true\n").contains("no setting"));
        assert!(refused("[worker\n").contains("line 1"), "{}", refused("[worker\n"));
    }

    /// Every command can be made with whatever a file may say.
    #[test]
    fn flags_that_are_there_or_not_can_be_set() {
        let config = config("[coordinator]\nallow_plaintext = true\nstate = '/s'\n");
        let command = config.apply(Arguments::command());
        command.clone().debug_assert();
        let matches = command.try_get_matches_from(["deltaconv", "coordinator"]).expect("parsed");
        assert!(matches.subcommand_matches("coordinator").expect("coordinator").get_flag("allow_plaintext"));
    }
}
