//! A job's stages by name.

/// The stage, and its round if it is a further one.
pub(crate) fn name(stage: &str, round: u32) -> String {
    match round {
        0 => stage.to_owned(),
        round => format!("{stage}, round {round}"),
    }
}
