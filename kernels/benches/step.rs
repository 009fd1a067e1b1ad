//! The yardstick of the CPU path: medians of a forward pass and of a training step (loss, gradients
//! of the parameters, AdamW) at batch 16. `benches/pytorch.py` measures the same in PyTorch.
//!
//! `cargo bench -p deltaconv-kernels`; `RAYON_NUM_THREADS` sets the number of threads.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints, and stops on errors")]

use deltaconv_kernels::bench::{measure_cpu, small_cases};

fn main() {
    println!("{:<20} {:>12} {:>12}", "map, kernel", "forward ms", "step ms");
    for case in small_cases() {
        let (forward, step) = measure_cpu(&case).unwrap();
        println!("{:<20} {:>12.3} {:>12.3}", case.name(), forward * 1e3, step * 1e3);
    }
}
