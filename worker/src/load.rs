//! How busy this machine is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deltaconv_proto::v1;

use crate::accelerator::Accelerator;
use crate::metrics;

/// What is measured anew no more often.
const EVERY: Duration = Duration::from_secs(1);

/// Averages between one look and the next.
#[derive(Debug)]
pub(crate) struct Gauge {
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::Gpu>,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    at: Instant,
    processors: Option<Processors>,
    transferred: [u64; 2],
    load: v1::Load,
}

impl Gauge {
    /// Of this machine, and of the GPU that is computed on.
    pub(crate) fn of(accelerator: &Accelerator) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = accelerator;
        Self {
            #[cfg(feature = "cuda")]
            gpu: gpu::Gpu::of(accelerator),
            last: Mutex::new(Last {
                at: Instant::now(),
                processors: Processors::read(),
                transferred: metrics::transferred(),
                load: v1::Load::default(),
            }),
        }
    }

    /// How busy it was since it was last measured.
    pub(crate) fn read(&self) -> v1::Load {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let seconds = now.saturating_duration_since(last.at).as_secs_f64();
        if seconds < EVERY.as_secs_f64() {
            return last.load;
        }
        let (processors, transferred) = (Processors::read(), metrics::transferred());
        let rate = |index: usize| transferred[index].saturating_sub(last.transferred[index]) as f64 / seconds;
        let load = v1::Load {
            cpu_utilisation: processors.and_then(|now| now.since(last.processors?)),
            memory_used_bytes: memory_used(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            read_bytes_per_second: rate(0),
            written_bytes_per_second: rate(1),
            ..self.of_gpu()
        };
        *last = Last { at: now, processors, transferred, load };
        load
    }

    #[cfg(feature = "cuda")]
    fn of_gpu(&self) -> v1::Load {
        self.gpu.as_ref().map(gpu::Gpu::load).unwrap_or_default()
    }

    #[cfg(not(feature = "cuda"))]
    fn of_gpu(&self) -> v1::Load {
        v1::Load::default()
    }
}

/// Time that all processors together have spent, in the system's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processors {
    busy: u64,
    all: u64,
}

impl Processors {
    fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of /proc/stat: user, nice, system, idle, iowait and more ("man 5 proc_stat").
    fn parse(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // What guests took is part of what users did.
        let fields: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let (all, idle) = (fields.iter().sum::<u64>(), fields.get(3)? + fields.get(4)?);
        Some(Self { busy: all - idle, all })
    }

    fn since(self, earlier: Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all).filter(|all| *all > 0)?;
        Some(self.busy.saturating_sub(earlier.busy) as f64 / all as f64)
    }
}

/// Bytes that can't be given to who asks for memory, of /proc/meminfo.
fn memory_used(text: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kib("MemTotal:")?.checked_sub(kib("MemAvailable:")?)?) * 1024)
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::fmt;

    use deltaconv_proto::v1;
    use nvml_wrapper::Nvml;
    use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

    use crate::accelerator::Accelerator;

    /// What the driver's management library says of the GPU.
    pub(super) struct Gpu {
        nvml: Nvml,
        uuid: String,
    }

    impl fmt::Debug for Gpu {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_tuple("Gpu").field(&self.uuid).finish()
        }
    }

    impl Gpu {
        /// `None` without a GPU, or where the library isn't there or doesn't know it.
        pub(super) fn of(accelerator: &Accelerator) -> Option<Self> {
            let Accelerator::Cuda(cuda) = accelerator else { return None };
            let (uuid, nvml) = (cuda.gpu.uuid().ok()?, Nvml::init());
            let nvml = nvml.inspect_err(|error| tracing::info!(%error, "how busy the GPU is can't be told")).ok()?;
            nvml.device_by_uuid(uuid.as_str())
                .inspect_err(|error| tracing::info!(%error, uuid, "how busy the GPU is can't be told"))
                .ok()?;
            Some(Self { nvml, uuid })
        }

        /// Figures that this GPU doesn't have are left out.
        pub(super) fn load(&self) -> v1::Load {
            let Ok(device) = self.nvml.device_by_uuid(self.uuid.as_str()) else { return v1::Load::default() };
            v1::Load {
                gpu_utilisation: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
                gpu_memory_used_bytes: device.memory_info().ok().map(|memory| memory.used),
                gpu_temperature: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
                gpu_power: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1000.0),
                ..v1::Load::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_processors_did_is_the_share_of_what_they_could() {
        let at = |text: &str| Processors::parse(text).expect("a line");
        let (first, then) = (at("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1"), at("cpu  160 0 70 840 80 0 0 0 9 0\n"));
        assert_eq!(first, Processors { busy: 150, all: 1000 });
        let share = then.since(first).expect("time passed");
        assert!((share - 80.0 / 150.0).abs() < 1e-12, "{share}");
        assert_eq!(first.since(first), None);
        for wrong in ["", "cpu", "cpu  1 2", "cpu  a b c d e", "intr 5"] {
            assert_eq!(Processors::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn memory_that_is_used_is_what_is_not_available() {
        let text = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory_used(text), Some(600 * 1024));
        assert_eq!(memory_used("MemTotal: 1 kB"), None);
    }
}
