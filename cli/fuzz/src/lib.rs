//! Fuzz targets: each parser of outside bytes with mutated bytes. What must hold is said beside the parsers, in modules called
//! `fuzzing`; here are the limits within which it must, and how libFuzzer finds a target.
//!
//! Of the worker, which brings all that computes, and of the binary only the modules are taken in that parse.

mod error;
mod limits;

#[path = "../../src/byte_size.rs"]
#[allow(dead_code)]
mod byte_size;
#[path = "../../src/config.rs"]
#[allow(dead_code)]
mod config;
#[path = "../../src/duration.rs"]
mod duration;
#[path = "../../src/fuzzing.rs"]
mod fuzzing;
#[path = "../../../worker/src/synthesise/image_file.rs"]
mod image_file;
#[path = "../../src/job_file.rs"]
#[allow(dead_code)]
mod job_file;
#[path = "../../src/location.rs"]
mod location;
#[path = "../../src/preset.rs"]
#[allow(dead_code)]
mod preset;
#[path = "../../src/said.rs"]
mod said;
#[path = "../../../worker/src/teacher/text/tokenizer/mod.rs"]
mod tokenizer;

#[global_allocator]
static ALLOCATOR: limits::Counted = limits::Counted;

/// Of this process, before its first run.
pub fn begin() {
    limits::bound_the_stack();
}

/// The target of this name.
///
/// # Panics
/// Where there is none.
pub fn target(name: &str) -> fn(&[u8]) {
    let of_crates = deltaconv_proto::fuzzing::TARGETS.iter().chain(&deltaconv_coordinator::fuzzing::TARGETS);
    let taken_in = fuzzing::TARGETS.iter().chain(&tokenizer::fuzzing::TARGETS).chain([&image_file::TARGET]);
    let mut targets = of_crates.chain(taken_in);
    targets.find(|(of, _)| *of == name).map(|(_, target)| *target).expect("a target of this name")
}

/// Runs a target on some bytes.
pub fn run(target: fn(&[u8]), bytes: &[u8]) {
    limits::within(limits::BYTES, || target(bytes));
}

/// Makes an executable that of a target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<fn(&[u8])> = std::sync::LazyLock::new(|| $crate::target($name));

        libfuzzer_sys::fuzz_target!(init: $crate::begin(), |bytes: &[u8]| $crate::run(*TARGET, bytes));
    };
}
