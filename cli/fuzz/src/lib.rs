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
#[allow(dead_code)]
mod duration;
#[path = "../../src/fuzzing.rs"]
mod fuzzing;
#[path = "../../../worker/src/synthesise/image_file.rs"]
mod image_file;
#[path = "../../src/job_file.rs"]
#[allow(dead_code)]
mod job_file;
#[path = "../../src/location.rs"]
#[allow(dead_code)]
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

/// Bytes that a run may hold at a time, whatever its input claims: inputs have at most a few thousandths of it.
const MEMORY: usize = 64 << 20;

/// Of this process, before its first run.
pub fn begin() {
    limits::bound_the_stack();
}

/// The target of this name. Known when an executable is built, so that it holds no other.
///
/// # Panics
/// Where there is none.
pub const fn target(name: &str) -> fn(&[u8]) {
    let mut of_all: [&[(&str, fn(&[u8]))]; 5] = [
        &deltaconv_proto::fuzzing::TARGETS,
        &deltaconv_coordinator::fuzzing::TARGETS,
        &tokenizer::fuzzing::TARGETS,
        &[image_file::TARGET],
        &fuzzing::TARGETS,
    ];
    let mut all: &mut [_] = &mut of_all;
    while let [targets, others @ ..] = all {
        while let [(of, target), rest @ ..] = *targets {
            if is_same(of.as_bytes(), name.as_bytes()) {
                return *target;
            }
            *targets = rest;
        }
        all = others;
    }
    panic!("a target of this name")
}

const fn is_same(mut one: &[u8], mut other: &[u8]) -> bool {
    while let ([a, of_one @ ..], [b, of_other @ ..]) = (one, other) {
        if *a != *b {
            return false;
        }
        (one, other) = (of_one, of_other);
    }
    one.is_empty() && other.is_empty()
}

/// Runs a target on some bytes.
pub fn run(target: fn(&[u8]), bytes: &[u8]) {
    limits::within(MEMORY, || target(bytes));
}

/// Makes an executable that of a target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        const TARGET: fn(&[u8]) = $crate::target($name);

        libfuzzer_sys::fuzz_target!(init: $crate::begin(), |bytes: &[u8]| $crate::run(TARGET, bytes));
    };
}
