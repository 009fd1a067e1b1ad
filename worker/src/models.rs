//! The models and data of the job at hand, loaded once for all its tasks.

use std::sync::{Arc, Mutex, PoisonError};

use deltaconv_proto::objects::Objects;
use deltaconv_proto::safetensors::LENGTH_BYTES;
use deltaconv_proto::teacher::{Scheduler, Teacher as Configuration};
use deltaconv_proto::{digest, v1};

use crate::data::Data;
use crate::student::Student;
use crate::task::{Context, Error};
use crate::teacher::{Denoiser, LoadOptions, Sampler, Weights};

/// The noise schedule's configuration.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// config.json and its like.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The pre-trained model and its noise schedule.
pub(crate) struct Teacher {
    pub(crate) denoiser: Denoiser,
    pub(crate) sampler: Sampler,
}

/// What was loaded last, by where it came from.
#[derive(Default)]
pub(crate) struct Models {
    teacher: Slot<Teacher>,
    student: Slot<Student>,
    data: Slot<Data>,
}

struct Slot<T>(Mutex<Option<(String, Arc<T>)>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Slot<T> {
    /// What `origin` names; loaded if something else was loaded last, which is then dropped first.
    fn get(&self, origin: String, load: impl FnOnce() -> Result<T, Error>) -> Result<Arc<T>, Error> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((from, loaded)) = slot.as_ref()
            && *from == origin
        {
            return Ok(loaded.clone());
        }
        *slot = None;
        let loaded = Arc::new(load()?);
        *slot = Some((origin, loaded.clone()));
        Ok(loaded)
    }
}

impl Models {
    /// The job's teacher. Fails if it isn't the one that was planned.
    pub(crate) fn teacher(&self, context: &Context) -> Result<Arc<Teacher>, Error> {
        let origin = format!("{} {}", context.job.teacher_url, context.plan.header_digest);
        self.teacher.get(origin, || context.wait(load_teacher(&context.job.teacher_url, &context.plan)))
    }

    /// The job's student, from the folder that assembly wrote.
    pub(crate) fn student(&self, context: &Context) -> Result<Arc<Student>, Error> {
        let origin = context.job.output_url.clone();
        self.student.get(origin, || context.wait(Student::load(&context.objects, &context.plan.denoiser_folder)))
    }

    /// The job's data set.
    pub(crate) fn data(&self, context: &Context) -> Result<Arc<Data>, Error> {
        let url = context.job.data.as_ref().ok_or(Error::Incomplete("data"))?.url.clone();
        self.data.get(url.clone(), || context.wait(Data::load(&url)))
    }
}

async fn load_teacher(url: &str, plan: &v1::JobPlan) -> Result<Teacher, Error> {
    let objects = Objects::open(url)?;
    let scheduler = objects.get(SCHEDULER, MAX_CONFIG_BYTES).await?;
    let sampler = Sampler::new(Scheduler::parse(&scheduler).map_err(crate::teacher::Error::from)?);
    let folder = &plan.denoiser_folder;
    let found = header_digest(&objects, &weights_key(folder)).await?;
    if found != plan.header_digest {
        let what = format!("{url}/{}", weights_key(folder));
        let reason = format!("its header's digest is {found}, and it was planned with {}", plan.header_digest);
        return Err(Error::Unexpected { what, reason });
    }
    let (denoiser, _) = load_denoiser(&objects, folder, LoadOptions::default()).await?;
    Ok(Teacher { denoiser, sampler })
}

/// A denoiser and its weights file, from the folder of a model in diffusers layout.
pub(crate) async fn load_denoiser(
    objects: &Objects,
    folder: &str,
    options: LoadOptions,
) -> Result<(Denoiser, Weights), Error> {
    let json = objects.get(&format!("{folder}/config.json"), MAX_CONFIG_BYTES).await?;
    let config = Configuration::parse(&json).map_err(crate::teacher::Error::from)?;
    let key = weights_key(folder);
    let mut weights = match local_path(objects, &key) {
        // Read tensor by tensor: the file is never whole in memory.
        Some(path) => Weights::open([path])?,
        None => Weights::from_bytes(objects.get(&key, u64::MAX).await?)?,
    };
    let denoiser = Denoiser::load(&config, &mut weights, options)?;
    Ok((denoiser, weights))
}

fn weights_key(folder: &str) -> String {
    format!("{folder}/diffusion_pytorch_model.safetensors")
}

fn local_path(objects: &Objects, key: &str) -> Option<std::path::PathBuf> {
    let folder = url::Url::parse(objects.url()).ok()?.to_file_path().ok()?;
    Some(folder.join(key))
}

async fn header_digest(objects: &Objects, key: &str) -> Result<String, Error> {
    let size = objects.size(key).await?;
    let first = objects.get_range(key, 0, LENGTH_BYTES.min(size)).await?;
    let first: [u8; 8] = first.as_ref().try_into().unwrap_or_default();
    let length = deltaconv_proto::safetensors::parse_length(&first, size)?;
    Ok(digest::of(&objects.get_range(key, 0, LENGTH_BYTES + length).await?))
}
