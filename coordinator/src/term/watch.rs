//! Looks whether the outputs of running jobs are still this coordinator's.

use std::time::Duration;

use deltaconv_proto::ids::JobId;
use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;

use super::{Error, Terms};
use crate::core::{Handle, Unserved};

/// Between two looks at an output.
const EVERY: Duration = Duration::from_secs(15);
/// Outputs that are looked at at a time.
const AT_A_TIME: usize = 8;

/// Until `stop`. The first look takes the outputs of jobs that an earlier process left running.
pub(crate) async fn watch(core: Handle, terms: Terms, stop: CancellationToken) {
    let looking = async {
        while let Ok(running) = core.call(|state, _, _| state.running()).await {
            let looks = running.into_iter().map(|(job, url)| look(&core, &terms, job, url));
            stream::iter(looks).for_each_concurrent(AT_A_TIME, |look| look).await;
            tokio::time::sleep(EVERY).await;
        }
    };
    stop.run_until_cancelled(looking).await;
}

async fn look(core: &Handle, terms: &Terms, job: JobId, url: String) {
    match terms.own(&url).await {
        Ok(_) => {
            // It may have ended, and been given back, since it was listed.
            let of = url.clone();
            if let Ok(false) = core.call(move |state, _, _| state.is_written_to(&of)).await
                && let Err(error) = terms.release(&url).await
            {
                tracing::debug!(%job, %error, "the output stays this coordinator's");
            }
        }
        // A core that stops has nothing more to be told.
        Err(held @ Error::Held { .. }) => _ = fence(core, &job, &held).await,
        Err(error) => tracing::warn!(%job, %error, "whose the output is can't be seen; it is tried again"),
    }
}

/// Ends a job whose output is another's.
pub(crate) async fn fence(core: &Handle, job: &JobId, held: &Error) -> Result<(), Unserved> {
    let reason = held.code().before(format_args!(
        "another coordinator took the output over, and this one touches nothing there any more: {held}"
    ));
    tracing::error!(%job, reason, "job ended");
    let id = job.clone();
    core.call(move |state, now, effects| state.fenced(&id, reason, now, effects)).await
}
