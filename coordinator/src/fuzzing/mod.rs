//! Doors to the parsers of outside bytes, for fuzzing, as `deltaconv_proto::fuzzing` has them: records of a state, what workers and
//! operators send, what lies beside a job's objects.

mod files;
mod messages;
mod records;

/// The parsers of this crate, by the names of their corpora.
pub const TARGETS: [(&str, deltaconv_proto::fuzzing::Target); 7] = [
    ("manifest", records::of_manifest),
    ("record", records::of_record),
    ("messages", messages::of_messages),
    ("spec", messages::of_spec),
    ("evaluation", files::of_evaluation),
    ("history", files::of_history),
    ("data", files::of_data),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_from_fuzzing_holds() {
        deltaconv_proto::fuzzing::replay(&TARGETS);
    }
}
