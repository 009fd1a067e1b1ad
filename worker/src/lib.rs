//! deltaconv's worker: joins a coordinator, captures activations, trains blocks and evaluates students.

pub mod teacher;
