//! The store that jobs write to: whether all that a job needs of it works.

use std::time::{Duration, Instant};

use deltaconv_proto::code::Code;
use deltaconv_proto::objects::{self, Objects};
use deltaconv_proto::v1::ObjectRef;
use futures::StreamExt;

use super::Finding;
use crate::table;

/// What is written and read.
const SIZE: usize = 32 << 20;

const REACHED: &str = "store";
const CONDITIONAL: &str = "conditional writes";
const SPEED: &str = "store speed";

pub(super) async fn look(url: &str) -> Vec<Finding> {
    let failed = |check, error: &objects::Error| Finding::failed(check, error.to_string(), error.code());
    let folder = format!("deltaconv-doctor-{}-{}", std::process::id(), moment());
    let objects = match Objects::open(url).and_then(|objects| objects.below(&folder)) {
        Ok(objects) => objects,
        Err(error) => return vec![failed(REACHED, &error)],
    };
    let mut findings = Vec::new();
    match reached(&objects).await {
        Ok(took) => findings.push(Finding::ok(
            REACHED,
            format!(
                "{url} takes, lists, gives and removes objects; a small one takes {:.0} ms",
                took.as_secs_f64() * 1e3
            ),
        )),
        Err(error) => return vec![failed(REACHED, &error)],
    }
    match is_conditional(&objects).await {
        Ok(true) => findings.push(Finding::ok(CONDITIONAL, "what is there already is not written over")),
        Ok(false) => findings.push(Finding::failed(
            CONDITIONAL,
            "an object that was there was written over: two coordinators could take one output",
            Code::StoreSettings,
        )),
        Err(error) => findings.push(failed(CONDITIONAL, &error)),
    }
    match speed(&objects).await {
        Ok((write, read)) => {
            let rate = |took: Duration| table::bytes((SIZE as f64 / took.as_secs_f64().max(1e-9)) as u64);
            let found = format!(
                "one object of {}: {}/s written, {}/s read",
                table::bytes(SIZE as u64),
                rate(write),
                rate(read)
            );
            findings.push(Finding::ok(SPEED, found));
        }
        Err(error) => findings.push(failed(SPEED, &error)),
    }
    findings
}

/// Tells one look from another.
fn moment() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}

/// How long a small object takes; fails unless it can be written, listed, read and removed.
async fn reached(objects: &Objects) -> Result<Duration, objects::Error> {
    let began = Instant::now();
    let written = objects.put("small", b"deltaconv".as_slice()).await?;
    let took = began.elapsed();
    objects.get_verified(&written).await?;
    let listed = objects.list(10).await?;
    if !listed.contains(&written.key) {
        return Err(unseen(&written));
    }
    remove(objects, "small").await?;
    Ok(took)
}

fn unseen(written: &ObjectRef) -> objects::Error {
    let (key, expected) = (written.key.clone(), written.digest.clone());
    objects::Error::Broken { key, expected, found: "it is not among what the store lists".to_owned() }
}

async fn remove(objects: &Objects, key: &str) -> Result<(), objects::Error> {
    let mut removed = objects.remove(vec![key.to_owned()]);
    while let Some(removed) = removed.next().await {
        removed?;
    }
    Ok(())
}

/// Whether an object that is there is left as it is by who wants to make it.
async fn is_conditional(objects: &Objects) -> Result<bool, objects::Error> {
    objects.create("once", b"first".as_slice()).await?;
    let again = objects.create("once", b"second".as_slice()).await;
    let stays = objects.get("once", 100).await?.as_ref() == b"first";
    remove(objects, "once").await?;
    match again {
        Err(objects::Error::AlreadyExists { .. }) => Ok(stays),
        Ok(()) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn speed(objects: &Objects) -> Result<(Duration, Duration), objects::Error> {
    let bytes: Vec<u8> = (0..SIZE).map(|index| (index * 31 % 251) as u8).collect();
    let object = ObjectRef::of("large", &bytes);
    let began = Instant::now();
    objects.put_object(&object, bytes).await?;
    let wrote = began.elapsed();
    let began = Instant::now();
    let read = objects.get_verified(&object).await.map(|_| began.elapsed());
    remove(objects, "large").await?;
    Ok((wrote, read?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::commands::doctor::Verdict;
    use crate::location;

    #[tokio::test]
    async fn a_folder_does_all_that_a_job_needs_and_is_left_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = location::url(folder.path().to_str().expect("UTF-8"), Path::new("")).expect("a URL");
        let findings = look(&url).await;
        assert!(findings.len() == 3 && findings.iter().all(|f| f.verdict == Verdict::Ok), "{findings:?}");
        let files = std::fs::read_dir(folder.path()).expect("there").flatten();
        let files: usize = files.map(|below| std::fs::read_dir(below.path()).map_or(1, Iterator::count)).sum();
        assert_eq!(files, 0);
        let nowhere = look("ftp://host/folder").await;
        assert_eq!(nowhere[0].code, Some("DC0201"), "{nowhere:?}");
    }
}
