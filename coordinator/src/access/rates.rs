//! How much one peer may ask of the coordinator, so that none is held up by another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Calls a second of one who is known, and as many more at once.
const CALLS: (u32, u32) = (100, 400);
/// Of strangers at one address: health checks, and workers that enrol, of which many may be behind one address.
const STRANGE_CALLS: (u32, u32) = (20, 200);
/// Reports a second of one worker. It calls twice a second, and oftener while its tasks are short.
const REPORTS: (u32, u32) = (1000, 2000);
/// Calls of one peer at the same time, streams among them.
const AT_ONCE: usize = 128;

/// What each peer asked for of late.
#[derive(Debug)]
pub(crate) struct Rates {
    calls: DefaultKeyedRateLimiter<Arc<str>>,
    strange: DefaultKeyedRateLimiter<IpAddr>,
    reports: DefaultKeyedRateLimiter<Arc<str>>,
    at_once: Counts<Arc<str>>,
}

fn limiter<K: std::hash::Hash + Eq + Clone>((per_second, at_once): (u32, u32)) -> DefaultKeyedRateLimiter<K> {
    let some = |count| NonZero::new(count).unwrap_or(NonZero::<u32>::MIN);
    RateLimiter::keyed(Quota::per_second(some(per_second)).allow_burst(some(at_once)))
}

impl Rates {
    /// Nobody asked yet.
    pub(crate) fn new() -> Self {
        let (calls, strange, reports) = (limiter(CALLS), limiter(STRANGE_CALLS), limiter(REPORTS));
        Self { calls, strange, reports, at_once: Counts::default() }
    }

    /// Whether one who is known may call.
    pub(crate) fn call(&self, name: &Arc<str>) -> bool {
        self.calls.check_key(name).is_ok()
    }

    /// Whether strangers at this address may call.
    pub(crate) fn strange_call(&self, address: IpAddr) -> bool {
        self.strange.check_key(&network(address)).is_ok()
    }

    /// Waits until the worker may report again.
    pub(crate) async fn report(&self, worker: &Arc<str>) {
        self.reports.until_key_ready(worker).await;
    }

    /// A call of the peer that lasts as long as what this returns; `None` where it has too many.
    pub(crate) fn begin(&self, name: &Arc<str>) -> Option<Slot<Arc<str>>> {
        self.at_once.take(name.clone(), AT_ONCE)
    }

    /// Forgets who asked for nothing of late.
    pub(crate) fn forget(&self) {
        self.calls.retain_recent();
        self.strange.retain_recent();
        self.reports.retain_recent();
    }
}

/// An address as one peer has it: of IPv6 a whole /64 is one machine's.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        },
    }
}

/// How many of something each peer has.
#[derive(Debug)]
pub(crate) struct Counts<K>(Arc<Mutex<BTreeMap<K, usize>>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone> Counts<K> {
    /// One more, as long as what this returns is there; `None` where there are `most` already.
    pub(crate) fn take(&self, key: K, most: usize) -> Option<Slot<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Slot { key, counts: self.clone() })
    }
}

/// One of those that are counted.
#[derive(Debug)]
pub(crate) struct Slot<K: Ord + Clone> {
    key: K,
    counts: Counts<K>,
}

impl<K: Ord + Clone> Drop for Slot<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_is_held_up_and_another_is_not() {
        let rates = Rates::new();
        let (greedy, other): (Arc<str>, Arc<str>) = ("operator:greedy".into(), "operator:other".into());
        let taken = (0..10 * CALLS.1).filter(|_| rates.call(&greedy)).count();
        assert!((CALLS.1 as usize..2 * CALLS.1 as usize).contains(&taken), "{taken}");
        assert!(rates.call(&other));

        let slots: Vec<_> = (0..AT_ONCE).map(|_| rates.begin(&greedy).expect("room")).collect();
        assert!(rates.begin(&greedy).is_none() && rates.begin(&other).is_some());
        drop(slots);
        assert!(rates.begin(&greedy).is_some());
    }

    #[test]
    fn who_has_many_addresses_is_one_peer() {
        let rates = Rates::new();
        let address = |last: u16| format!("2001:db8:1:2::{last:x}").parse::<IpAddr>().expect("an address");
        let taken = (0..10 * STRANGE_CALLS.1 as u16).filter(|last| rates.strange_call(address(*last))).count();
        assert!(taken < 2 * STRANGE_CALLS.1 as usize, "{taken}");
        assert_eq!(network("::ffff:10.0.0.1".parse().expect("an address")), IpAddr::from([10, 0, 0, 1]));
        assert!(rates.strange_call("2001:db8:1:3::1".parse().expect("an address")));
    }
}
