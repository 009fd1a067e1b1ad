//! Teacher configurations.
