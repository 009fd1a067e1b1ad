//! What manifests say beyond a snapshot.

use std::collections::BTreeMap;

use deltaconv_proto::ids::JobId;
use deltaconv_proto::objects::Objects;
use deltaconv_proto::v1;

use super::{Error, Job, Restored};
use crate::manifest::{self, Found};
use crate::store::{Records, Write};

/// Takes into `records` what the manifests of its running jobs have more, and the jobs of the outputs in `named`; answers with
/// what changed.
pub(super) async fn from_manifests(
    records: &mut Records,
    named: &[String],
    restored: &mut Restored,
) -> Result<Vec<Write>, Error> {
    let mut found = Vec::new();
    for job in records.jobs.iter().filter(|job| job.state == "running") {
        let id = JobId::new(job.job_id.clone()).map_err(crate::schedule::Error::from)?;
        match beyond(job, &id).await {
            Ok(beyond) => found.extend(beyond),
            Err(error) => {
                restored.remarks.push(format!("{id} goes on from the snapshot, its manifests can't be read: {error}"));
            }
        }
    }
    for url in named {
        let objects = Objects::open(url)?;
        let url = objects.url();
        if records.jobs.iter().any(|job| output(job) == url && job.state == "running") {
            continue;
        }
        let manifests = manifest::find(&objects, None, 0).await?;
        let Some(job) = manifests else { return Err(Error::NoManifests { url: url.to_owned() }) };
        let others = records.jobs.iter().chain(found.iter().map(|found: &Found| &found.job));
        if let Some(other) = others.into_iter().find(|other| other.job_id == job.job.job_id) {
            let (job, other) = (job.job.job_id, output(other).to_owned());
            return Err(Error::Twice { job, url: url.to_owned(), other });
        }
        found.push(job);
    }
    let more: BTreeMap<String, u64> =
        found.iter().map(|found| (found.job.job_id.clone(), committed(&found.tasks))).collect();
    let mut changed = Vec::new();
    for Found { meta, job, tasks } in found {
        records.meta.epoch = records.meta.epoch.max(meta.epoch);
        changed.push(Write::Job(Box::new(job.clone())));
        changed.extend(tasks.values().map(|task| Write::Task(Box::new(task.clone()))));
        records.jobs.retain(|known| known.job_id != job.job_id);
        records.jobs.push(job);
        records.tasks.retain(|known| !tasks.contains_key(&known.task_id));
        records.tasks.extend(tasks.into_values());
    }
    for job in &records.jobs {
        let tasks = format!("{}/", job.job_id);
        let of_job = records.tasks.iter().filter(|task| task.committed && task.task_id.starts_with(&tasks));
        restored.jobs.push(Job {
            job_id: job.job_id.clone(),
            state: job.state.clone(),
            output_url: output(job).to_owned(),
            committed: of_job.count() as u64,
            from_manifests: more.get(&job.job_id).copied().unwrap_or(0),
        });
    }
    Ok(changed)
}

fn output(job: &v1::JobRecord) -> &str {
    job.spec.as_ref().map_or("", |spec| &spec.output_url)
}

fn committed(tasks: &BTreeMap<String, v1::TaskRecord>) -> u64 {
    tasks.values().filter(|task| task.committed).count() as u64
}

/// What the manifests have of steps that were not over in the snapshot, if they have one of these.
async fn beyond(job: &v1::JobRecord, id: &JobId) -> Result<Option<Found>, Error> {
    let objects = Objects::open(output(job))?;
    // Steps that a job doesn't take have no times.
    let over = job.stages.iter().rposition(|times| times.finished_unix_ms > 0).map_or(0, |last| last as u32 + 1);
    Ok(manifest::find(&objects, Some(id), over + 1).await?)
}
