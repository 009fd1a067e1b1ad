//! Looks at the certificates: reads them again when they change, and says when one is over soon.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::{Access, Tls};
use crate::core::Handle;

/// How often the files are read.
const EVERY: Duration = Duration::from_secs(10);

/// Looks until `shutdown`.
pub(crate) async fn watch(access: Access, core: Handle, shutdown: CancellationToken) {
    let mut told = BTreeSet::new();
    let mut wrong = String::new();
    loop {
        access.rates.forget();
        if let Some(tls) = &access.tls {
            look(tls, &access, &core, &mut told, &mut wrong).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn look(
    tls: &Tls,
    access: &Access,
    core: &Handle,
    told: &mut BTreeSet<(&'static str, u64, bool)>,
    wrong: &mut String,
) {
    match tls.reload() {
        Ok(changed) => {
            wrong.clear();
            if changed {
                tracing::info!("the certificates changed; new connections have the new ones");
                let note = core.call(|state, now, effects| state.certificates_changed(now, effects));
                // A state that can't be written says so itself.
                let _ = note.await;
            }
        }
        Err(error) => {
            let error = error.to_string();
            if *wrong != error {
                tracing::error!(error, "the certificates were not read again; those before stay in use");
                *wrong = error;
            }
        }
    }
    access.metrics.certificates(&tls.ends());
    for ending in tls.expiring(SystemTime::now()) {
        if !told.insert((ending.certificate, ending.unix_ms, ending.is_over)) {
            continue;
        }
        let (certificate, unix_ms, is_over) = (ending.certificate, ending.unix_ms, ending.is_over);
        tracing::warn!(certificate, ends = deltaconv_proto::utc(unix_ms), is_over, "a certificate is over soon");
        let note =
            core.call(move |state, now, effects| state.certificate_ends((certificate, unix_ms), is_over, now, effects));
        let _ = note.await;
    }
}
