//! How much work there is for workers, for what starts and ends them.

use std::collections::BTreeMap;

use deltaconv_proto::v1;

use super::{Job, State};

impl State {
    /// What running jobs have for workers, by what they require of them. Takes a look at every job.
    pub fn demand(&self) -> v1::DemandResponse {
        let nothing = v1::Requirements::default();
        let mut by_requirements: BTreeMap<(u64, &str, &str), v1::Demand> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| job.is_running()) {
            let of_job = job.spec.requires.as_ref().unwrap_or(&nothing);
            let key = (of_job.memory_bytes, of_job.precision.as_str(), of_job.device.as_str());
            let demand = by_requirements.entry(key).or_insert_with(|| {
                let requires = Some(of_job.clone()).filter(|requires| *requires != nothing);
                v1::Demand { requires, ..v1::Demand::default() }
            });
            demand.at_work += job.attempts as u64;
            if !job.paused {
                demand.left += job.left() as u64;
                demand.ready += if self.read_only.is_some() { 0 } else { job.startable() as u64 };
            }
        }
        v1::DemandResponse { demands: by_requirements.into_values().collect(), machines_out: self.machines_out() }
    }
}

impl Job {
    /// Tasks that could be begun now.
    pub(super) fn startable(&self) -> usize {
        let ready: usize = self.ready().map(|work| work.waiting.len()).sum();
        ready.min(self.at_most().saturating_sub(self.attempts))
    }

    /// Tasks that workers have yet to do, as far as they can be done at a time.
    fn left(&self) -> usize {
        let committed: usize = self.work.iter().map(|work| work.committed).sum();
        self.slots.len().saturating_sub(committed + self.quarantined.len()).min(self.at_most())
    }

    /// Workers that may be at it at a time.
    fn at_most(&self) -> usize {
        match self.spec.max_workers {
            0 => usize::MAX,
            most => most as usize,
        }
    }
}
