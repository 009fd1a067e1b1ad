//! Texts of workers and of files, as far as records keep them: a record has at most 64 KiB, and a larger one would keep the state
//! from being written at all.

use deltaconv_proto::v1;
use prost::Message;

use crate::store::MAX_VALUE;

/// Of a message that a worker gives for what went wrong, in bytes.
pub(super) const MESSAGE: usize = 1500;
/// Of what is said together.
pub(super) const STORY: usize = 4000;
/// Failures of a task, or on a machine, that are kept: the last ones.
pub(super) const FAILURES: usize = 16;
/// Of a name.
const NAME: usize = 256;
/// Precisions of a device.
const PRECISIONS: usize = 16;
/// Of why a layer stays attention, where many do.
const SHORT: usize = 40;

/// At most so many bytes of the text.
pub(super) fn bounded(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

/// What somebody calls itself, as people can be shown it.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// A device as a worker describes it, without what could not be shown.
pub(super) fn device(device: v1::Device) -> v1::Device {
    let name = |text: String| {
        let printable: String = text.chars().filter(|c| !c.is_control()).take(NAME).collect();
        bounded(&printable, NAME)
    };
    v1::Device {
        kind: name(device.kind),
        name: name(device.name),
        compute_capability: name(device.compute_capability),
        precisions: device.precisions.into_iter().take(PRECISIONS).map(name).collect(),
        ..device
    }
}

/// Forgets the oldest.
pub(super) fn keep_last<T>(failures: &mut Vec<T>) {
    failures.drain(..failures.len().saturating_sub(FAILURES));
}

/// Whether a record can be stored, behind the byte of its version.
pub(super) fn fits(record: &impl Message) -> bool {
    record.encoded_len() < MAX_VALUE
}

/// A job's record that can be stored: where it would be too large, with less of why it failed and why layers stay attention.
pub(super) fn fitting(mut record: v1::JobRecord) -> v1::JobRecord {
    if !fits(&record) {
        let staying = record.figures.iter_mut().flat_map(|figures| &mut figures.stay_attention);
        staying.for_each(|one| one.reason = bounded(&one.reason, SHORT));
    }
    if !fits(&record) {
        record.reason = bounded(&record.reason, MESSAGE);
        record.figures.iter_mut().for_each(|figures| figures.stay_attention.clear());
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_records_fit() {
        assert_eq!(bounded("aé", 2), "a");
        assert_eq!(bounded("aé", 3), "aé");
        let stays = v1::StaysAttention { layer: "l".into(), reason: "é".repeat(1000) };
        let figures = v1::Figures { stay_attention: vec![stays; 100], ..v1::Figures::default() };
        let record = v1::JobRecord { figures: Some(figures), reason: "r".repeat(5000), ..v1::JobRecord::default() };
        assert!(!fits(&record));
        let fitting = fitting(record);
        assert!(fits(&fitting) && fitting.figures.expect("figures").stay_attention.len() == 100);
        let precisions = vec!["x".repeat(1000); 1000];
        let named = device(v1::Device { name: "GPU\n\x1b[2J".into(), precisions, ..v1::Device::default() });
        assert_eq!((named.name.as_str(), named.precisions.len(), named.precisions[0].len()), ("GPU[2J", 16, 256));
    }
}
