//! A profile of AWS's configuration files, which `object_store` doesn't read: keys, region and endpoint.
//!
//! Profiles can also name a program, a role or a sign-on that gives credentials. Those are refused by name: without them the
//! instance's credentials would be taken silently, which may be somebody else's.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::options::nearest;

/// What is taken from a profile.
const SETTINGS: [&str; 5] =
    ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url", "region"];
/// What changes whose credentials a profile gives, or where the store is, in ways that nothing here can follow; by what they
/// begin with.
const REFUSED: [&str; 7] = [
    "credential_process",
    "credential_source",
    "role_arn",
    "services",
    "source_profile",
    "sso_",
    "web_identity_token_file",
];
/// A file of configuration that is larger is none.
const MAX_BYTES: u64 = 1 << 20;

/// What can be wrong with a profile. No message shows a value: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{}: {source}", file.display())]
    Unreadable { file: PathBuf, source: io::Error },
    #[error("{} has {bytes} bytes, and is no file of profiles", file.display())]
    TooLarge { file: PathBuf, bytes: u64 },
    #[error("line {line} of {} is no [section], no setting = value and no # comment", file.display())]
    Line { file: PathBuf, line: usize },
    #[error("AWS_PROFILE is {name}, and neither {} nor {} has it", files[0].display(), files[1].display())]
    Missing { name: String, files: [PathBuf; 2] },
    #[error(
        "{} has {setting} in profile {name}, which is not supported: export credentials, as by \
         `aws configure export-credentials --profile {name} --format env`, or the endpoint as AWS_ENDPOINT_URL_S3, and unset \
         AWS_PROFILE",
        file.display()
    )]
    NotSupported { file: PathBuf, name: String, setting: String },
    #[error("{} has {setting} in profile {name}, which is no setting; is it {near}?", file.display())]
    Misspelt { file: PathBuf, name: String, setting: String, near: &'static str },
    #[error("profile {name} has {present} and no {missing}; add it to {}", file.display())]
    Half { file: PathBuf, name: String, present: &'static str, missing: &'static str },
}

/// What a profile says. Its `Debug` would show secrets, so that it has none.
#[derive(Default)]
pub(super) struct Profile {
    pub(super) keys: Option<Keys>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

/// A profile's credentials.
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) session: Option<String>,
}

/// The profile that the environment names; the default one where it neither names one nor has credentials itself.
pub(super) fn of(environment: &Environment) -> Result<Profile, Error> {
    let named = environment.get("AWS_PROFILE");
    let has_credentials = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"]
        .into_iter()
        .chain(["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"])
        .any(|name| environment.get(name).is_some());
    if named.is_none() && has_credentials {
        return Ok(Profile::default());
    }
    let name = named.unwrap_or("default");
    let file = |variable, usual| match (environment.get(variable), environment.get("HOME")) {
        (Some(path), home) => match (path.strip_prefix("~/"), home) {
            (Some(below), Some(home)) => Path::new(home).join(below),
            _ => PathBuf::from(path),
        },
        (None, home) => Path::new(home.unwrap_or("/")).join(".aws").join(usual),
    };
    let credentials = file("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let config = file("AWS_CONFIG_FILE", "config");
    let headings = match name {
        "default" => vec!["default".to_owned(), "profile default".to_owned()],
        _ => vec![format!("profile {name}")],
    };
    let general = section(&config, name, &headings)?;
    let own = section(&credentials, name, &[name.to_owned()])?;
    if named.is_some() && general.is_none() && own.is_none() {
        return Err(Error::Missing { name: name.to_owned(), files: [credentials, config] });
    }
    // Where both files have a setting, the credentials' own file wins, as it does for AWS's tools.
    let mut settings = general.unwrap_or_default();
    settings.extend(own.unwrap_or_default());
    profile(settings, name, credentials)
}

fn profile(mut settings: BTreeMap<String, String>, name: &str, file: PathBuf) -> Result<Profile, Error> {
    let [id, secret] = [SETTINGS[0], SETTINGS[1]];
    let half = |present, missing| Error::Half { file, name: name.to_owned(), present, missing };
    let keys = match (settings.remove(id), settings.remove(secret)) {
        (Some(id), Some(secret)) => Some(Keys { id, secret, session: settings.remove(SETTINGS[2]) }),
        (Some(_), None) => return Err(half(id, secret)),
        (None, Some(_)) => return Err(half(secret, id)),
        (None, None) => None,
    };
    Ok(Profile { keys, endpoint: settings.remove("endpoint_url"), region: settings.remove("region") })
}

/// A profile's settings in one file; none where the file or the profile isn't there.
fn section(file: &Path, name: &str, headings: &[String]) -> Result<Option<BTreeMap<String, String>>, Error> {
    let unreadable = |source| Error::Unreadable { file: file.to_owned(), source };
    let text = match std::fs::metadata(file) {
        Ok(found) if found.len() > MAX_BYTES => {
            return Err(Error::TooLarge { file: file.to_owned(), bytes: found.len() });
        }
        Ok(_) => std::fs::read_to_string(file).map_err(unreadable)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut is_ours = false;
    for (index, line) in text.lines().enumerate() {
        let wrong = || Error::Line { file: file.to_owned(), line: index + 1 };
        let content = uncommented(line).trim();
        if content.is_empty() {
            continue;
        }
        if let Some(heading) = content.strip_prefix('[') {
            let heading = heading.strip_suffix(']').ok_or_else(wrong)?;
            let heading = heading.split_whitespace().collect::<Vec<_>>().join(" ");
            is_ours = headings.contains(&heading);
            if is_ours {
                found.get_or_insert_default();
            }
            continue;
        }
        // Indented lines belong to the setting above, which then is another tool's.
        if line.starts_with([' ', '\t']) {
            continue;
        }
        let (setting, value) = content.split_once('=').ok_or_else(wrong)?;
        if !is_ours {
            continue;
        }
        let setting = setting.trim().to_lowercase();
        check(file, name, &setting)?;
        if SETTINGS.contains(&setting.as_str()) && !value.trim().is_empty() {
            found.get_or_insert_default().insert(setting, value.trim().to_owned());
        }
    }
    Ok(found)
}

/// A line without its comment, which begins it or stands behind a space: secrets may contain the character.
fn uncommented(line: &str) -> &str {
    let starts = |(at, c): &(usize, char)| {
        matches!(c, '#' | ';') && (*at == 0 || line[..*at].ends_with(|before: char| before.is_whitespace()))
    };
    line.char_indices().find(starts).map_or(line, |(at, _)| &line[..at])
}

fn check(file: &Path, name: &str, setting: &str) -> Result<(), Error> {
    let (file, name, setting) = (file.to_owned(), name.to_owned(), setting.to_owned());
    if REFUSED.iter().any(|refused| setting.starts_with(refused)) {
        return Err(Error::NotSupported { file, name, setting });
    }
    if SETTINGS.contains(&setting.as_str()) {
        return Ok(());
    }
    match nearest(&setting, SETTINGS.into_iter()).first() {
        Some(near) => Err(Error::Misspelt { file, name, setting, near }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with both files, and what its environment says beside that.
    fn home(credentials: &str, config: &str, variables: &[(&str, &str)]) -> (tempfile::TempDir, Environment) {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(home.path().join(".aws")).expect("a folder");
        for (name, content) in [("credentials", credentials), ("config", config)] {
            std::fs::write(home.path().join(".aws").join(name), content).expect("writes");
        }
        let path = home.path().to_str().expect("UTF-8").to_owned();
        let own = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = own.chain([("HOME".to_owned(), path)]).collect();
        (home, environment)
    }

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key = b/#+=  # mine\n\n\
                               [lab]\naws_access_key_id=L\naws_secret_access_key=m\naws_session_token = n\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\ns3 =\n  addressing_style = path\noutput = json\n\
                          [profile lab]\nregion=us-west-2\nendpoint_url = https://lab.example ; inside\n\
                          [profile other]\nsso_session = x\n[sso-session x]\nsso_region = us-east-1\n";

    fn error(credentials: &str, config: &str, variables: &[(&str, &str)]) -> String {
        let (_home, environment) = home(credentials, config, variables);
        of(&environment).map(drop).expect_err("refused").to_string()
    }

    #[test]
    fn keys_region_and_endpoint_come_from_both_files() {
        let (_home, environment) = home(CREDENTIALS, CONFIG, &[]);
        let Profile { keys, region, endpoint } = of(&environment).expect("a profile");
        let keys = keys.expect("keys");
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.session), ("A", "b/#+=", None));
        assert_eq!((region.as_deref(), endpoint), (Some("eu-west-1"), None));

        let (_home, environment) = home(CREDENTIALS, CONFIG, &[("AWS_PROFILE", "lab")]);
        let Profile { keys, region, endpoint } = of(&environment).expect("a profile");
        let keys = keys.expect("keys");
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.session.as_deref()), ("L", "m", Some("n")));
        assert_eq!((region.as_deref(), endpoint.as_deref()), (Some("us-west-2"), Some("https://lab.example")));
    }

    #[test]
    fn files_lie_where_the_environment_says() {
        let (home, _) = home(CREDENTIALS, CONFIG, &[]);
        let path = home.path().to_str().expect("UTF-8");
        let elsewhere: Environment = [
            ("HOME".to_owned(), path.to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE".to_owned(), "~/.aws/config".to_owned()),
            ("AWS_CONFIG_FILE".to_owned(), format!("{path}/none")),
        ]
        .into_iter()
        .collect();
        let found = of(&elsewhere).expect("a profile");
        assert!(found.keys.is_none());
        assert_eq!(found.region.as_deref(), Some("eu-west-1"));
        assert!(of(&Environment::default()).is_ok(), "no home, no files, no profile");
    }

    #[test]
    fn credentials_of_the_environment_leave_the_default_profile_unread() {
        for variable in ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"] {
            let (_home, environment) = home("no profile", "", &[(variable, "x")]);
            assert!(of(&environment).expect("nothing").keys.is_none());
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name() {
        for setting in ["sso_start_url", "role_arn", "credential_process", "source_profile", "services"] {
            let error = error("", &format!("[profile lab]\n{setting} = x\n"), &[("AWS_PROFILE", "lab")]);
            assert!(error.contains(setting) && error.contains("export"), "{error}");
        }
        let missing = error(CREDENTIALS, CONFIG, &[("AWS_PROFILE", "lap")]);
        assert!(missing.contains("lap") && missing.contains("credentials"), "{missing}");
        let misspelt = error("[default]\naws_acces_key_id = x\n", "", &[]);
        assert!(misspelt.contains("aws_acces_key_id") && misspelt.contains("aws_access_key_id"), "{misspelt}");
    }

    #[test]
    fn broken_files_are_refused_without_their_values() {
        for credentials in [
            "[default]\naws_secret_access_key secret\n",
            "[default\nx = secret\n",
            "[default]\naws_secret_access_key = secret\n",
        ] {
            let error = error(credentials, "", &[]);
            assert!(!error.contains(" secret"), "{error}");
            assert!(error.contains("credentials"), "{error}");
        }
    }
}
