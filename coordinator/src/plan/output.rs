//! A job's prefix: that it is free, or this job's own.

use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1::JobSpec;
use deltaconv_proto::{Brief, keys};

use super::{Error, spec};

/// A spec is stored under 64 KiB; as indented JSON it is a little larger.
const MAX_SPEC_BYTES: u64 = 1 << 20;
/// Folders that may lie beside a job's objects: a coordinator's state and the logs of its processes.
const BESIDE: [&str; 2] = ["state", "logs"];
/// So many objects that don't count are looked at before the prefix is taken for someone else's.
const LISTED: usize = 100_000;

/// Checks that the job's prefix is empty, or holds the same job.
///
/// # Errors
/// [`Error::OutputTaken`], naming what was found first.
pub async fn check_output(spec: &JobSpec) -> Result<(), Error> {
    check_prefix(&spec::open("output_url", &spec.output_url)?, spec).await
}

pub(crate) async fn check_prefix(objects: &Objects, spec: &JobSpec) -> Result<(), Error> {
    let taken = |found: &str, what: &str| Error::OutputTaken {
        url: objects.url().to_owned(),
        found: found.to_owned(),
        what: what.to_owned(),
    };
    match objects.get(keys::SPEC, MAX_SPEC_BYTES).await {
        Ok(bytes) => match serde_json::from_slice::<JobSpec>(&bytes) {
            Ok(found) if found == *spec => Ok(()),
            Ok(found) => {
                let difference = difference(&found, spec);
                Err(taken(keys::SPEC, &format!("of a job that differs from this one ({difference})")))
            }
            Err(error) => Err(taken(keys::SPEC, &format!("which is no job's ({})", Brief(&error)))),
        },
        Err(objects::Error::NotFound { .. }) => {
            let mut keys = objects.list(LISTED).await?;
            keys.sort();
            let something_else = |key: &&String| {
                let first = key.split('/').next().unwrap_or_default();
                !first.starts_with('.') && !BESIDE.contains(&first)
            };
            match keys.iter().find(something_else) {
                Some(found) => Err(taken(found, "and no spec.json of a job")),
                None => Ok(()),
            }
        }
        Err(other) => Err(other.into()),
    }
}

/// Takes the job's prefix for this job: checks that it is free, and writes the spec there. Doing so again changes nothing.
///
/// # Errors
/// As [`check_output`], also when another job took the prefix in the same moment.
pub async fn claim_output(spec: &JobSpec) -> Result<(), Error> {
    check_output(spec).await?;
    let objects = spec::open("output_url", &spec.output_url)?;
    let mut json = serde_json::to_vec_pretty(spec)?;
    json.push(b'\n');
    match objects.create(keys::SPEC, json).await {
        Err(objects::Error::AlreadyExists { .. }) => check_output(spec).await,
        other => Ok(other?),
    }
}

/// The first field in which two specs differ, with both values.
fn difference(there: &JobSpec, here: &JobSpec) -> String {
    let value = |spec: &JobSpec| serde_json::to_value(spec).unwrap_or_default();
    first_difference("", &value(there), &value(here)).unwrap_or_default()
}

fn first_difference(path: &str, there: &serde_json::Value, here: &serde_json::Value) -> Option<String> {
    if there == here {
        return None;
    }
    if let (Some(there), Some(here)) = (there.as_object(), here.as_object()) {
        let null = serde_json::Value::Null;
        let names = there.keys().chain(here.keys());
        return names
            .filter_map(|name| {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                first_difference(&below, there.get(name).unwrap_or(&null), here.get(name).unwrap_or(&null))
            })
            .next();
    }
    let shown = |value: &serde_json::Value| Brief(value).to_string();
    Some(format!("{path} is {} there, {} here", shown(there), shown(here)))
}
