//! Statuses as a page needs them: without what it doesn't show, and in figures that stand still while nothing happens.

use deltaconv_proto::v1;

/// A worker that was silent for less is there.
const SILENT_MS: u64 = 10_000;

/// With load and silence as exact as they are shown.
pub(super) fn worker(mut worker: v1::WorkerStatus) -> v1::WorkerStatus {
    worker.silent_ms -= worker.silent_ms % SILENT_MS;
    if let Some(load) = &mut worker.load {
        for share in [&mut load.gpu_utilisation, &mut load.cpu_utilisation].into_iter().flatten() {
            *share = (*share * 100.0).round() / 100.0;
        }
        for figure in [&mut load.gpu_temperature, &mut load.gpu_power].into_iter().flatten() {
            *figure = figure.round();
        }
        for bytes in [&mut load.gpu_memory_used_bytes, &mut load.memory_used_bytes].into_iter().flatten() {
            *bytes = shown(*bytes as f64) as u64;
        }
        load.read_bytes_per_second = shown(load.read_bytes_per_second);
        load.written_bytes_per_second = shown(load.written_bytes_per_second);
    }
    worker
}

/// With the tasks that somebody is at or has to look at, and 0 where a figure isn't known: NaN differs from itself.
pub(super) fn job(mut job: v1::JobStatus) -> v1::JobStatus {
    job.tasks.retain(|task| !task.worker_id.is_empty() || task.state == "quarantined");
    for layer in &mut job.layers {
        for figure in [&mut layer.held_out_error, &mut layer.training_error, &mut layer.samples_per_second] {
            if !figure.is_finite() {
                *figure = 0.0;
            }
        }
    }
    job
}

/// Two digits.
fn shown(figure: f64) -> f64 {
    if !(figure.is_finite() && figure >= 1.0) {
        return 0.0;
    }
    let unit = 10f64.powi(figure.log10().floor() as i32 - 1);
    (figure / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_no_difference_is_none() {
        let of = |used: u64, read: f64, silent_ms| {
            let load = v1::Load {
                gpu_memory_used_bytes: Some(used),
                cpu_utilisation: Some(0.123 + read / 1e12),
                read_bytes_per_second: read,
                written_bytes_per_second: f64::NAN,
                ..v1::Load::default()
            };
            worker(v1::WorkerStatus { silent_ms, load: Some(load), ..v1::WorkerStatus::default() })
        };
        assert_eq!(of(1_234_567, 987_654.0, 300), of(1_200_321, 990_001.0, 9_999));
        assert_ne!(of(1_234_567, 987_654.0, 300), of(1_334_567, 987_654.0, 300));
        assert_ne!(of(1, 0.0, 300), of(1, 0.0, 10_300));

        let layer = v1::LayerStatus { held_out_error: f64::NAN, ..v1::LayerStatus::default() };
        let task = |state: &str, worker: &str| v1::TaskStatus {
            state: state.into(),
            worker_id: worker.into(),
            ..v1::TaskStatus::default()
        };
        let tasks = vec![task("running", "w"), task("ready", ""), task("quarantined", "")];
        let status = v1::JobStatus { layers: vec![layer], tasks, ..v1::JobStatus::default() };
        let settled = job(status);
        assert_eq!(settled, settled.clone());
        assert_eq!(settled.tasks.len(), 2);
    }
}
