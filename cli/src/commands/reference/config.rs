//! docs/reference/config.md.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use crate::args::Arguments;
use crate::config::{is_setting, key};

const ABOUT: &str = "\
# Configuration

<!-- Made by `deltaconv reference config > docs/reference/config.md`. -->

Each flag of a command is a setting, and each setting has its value from the first of these that says it: the flag, the environment,
the file, the default. The file is the one that `--config` or `DELTACONV_CONFIG` names, or else `~/.config/deltaconv/config.toml`, or
else `/etc/deltaconv/config.toml`. `[defaults]` is for all commands that have the setting, and a table of a command's name for that
command. What is no setting is refused, with what may have been meant. `deltaconv config show` shows every value and where it comes
from, `deltaconv config show worker --threads 4` those of one call.

```toml
[defaults]
coordinator = \"http://10.0.0.5:7433\"

[worker]
token_file = \"/etc/deltaconv/worker.token\"
disk_cache = \"/nvme/deltaconv\"
disk_cache_size = \"2 TiB\"

[coordinator]
state = \"/var/lib/deltaconv\"
snapshots = \"s3://bucket/deltaconv\"
```

What a job is told is in its own file ([the job file](../job.md)).
";

/// Every setting of every command.
pub(super) fn page() -> String {
    let mut command = Arguments::command();
    command.build();
    let mut page = ABOUT.to_owned();
    add(&command, "", &mut page);
    page
}

fn add(command: &Command, path: &str, page: &mut String) {
    let settings: Vec<&Arg> = command.get_arguments().filter(|arg| is_setting(arg)).collect();
    if !path.is_empty() && !settings.is_empty() {
        // Writing to a String cannot fail.
        _ = write!(page, "\n## [{path}]\n\n| setting | value | default | environment | |\n|---|---|---|---|---|\n");
        settings.iter().for_each(|arg| page.push_str(&row(arg)));
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        let path = if path.is_empty() { below.get_name().to_owned() } else { format!("{path}.{}", below.get_name()) };
        add(below, &path, page);
    }
}

fn row(arg: &Arg) -> String {
    let possible: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    let names = arg.get_value_names().map(|names| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>());
    let value = if possible.is_empty() { names.unwrap_or_default().join(" ") } else { possible.join(", ") };
    let default: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let variable = arg.get_env().map(|variable| format!("`{}`", variable.to_string_lossy())).unwrap_or_default();
    let help = arg.get_help().map(|help| help.to_string().replace('|', "\\|")).unwrap_or_default();
    format!("| `{}` | {value} | {} | {variable} | {help} |\n", key(arg), default.join(", "))
}
