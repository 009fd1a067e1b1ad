//! Compiles the CUDA kernels, where the `cuda` feature asks for them, into one fat binary a source: machine code for
//! compute capability 8.0, 8.6, 8.9 and 9.0, and PTX of 9.0 that the driver compiles for newer devices.
//!
//! `nvcc` comes from `$CUDA_HOME/bin`, `$CUDA_PATH/bin` or the path, and must be 12.0 or newer.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::{env, fs};

/// The kernel sizes that the fused kernels are compiled for.
const FUSED: [usize; 7] = [1, 3, 5, 7, 9, 11, 13];
const MACHINES: [u32; 4] = [80, 86, 89, 90];
/// Those of the sources that take long: 8.6 and 8.9 run what was compiled for 8.0.
const FEW_MACHINES: [u32; 2] = [80, 90];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = nvcc();
    let mut jobs: Vec<(String, Vec<String>, String)> = Vec::new();
    for path in
        ["planes", "step", "optimiser", "teacher/norms", "teacher/gather", "teacher/attention", "teacher/gradients"]
    {
        let name = path.rsplit('/').next().unwrap_or(path);
        jobs.push((format!("{path}.cu"), Vec::new(), name.to_owned()));
    }
    for size in FUSED {
        jobs.push(("fused.cu".to_owned(), vec![format!("-DKERNEL_SIZE={size}")], format!("fused_{size}")));
    }
    let parallel = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize).max(1);
    for jobs in jobs.chunks(parallel) {
        let children: Vec<Child> =
            jobs.iter().map(|(source, defines, name)| compile(&nvcc, source, defines, &out.join(name))).collect();
        for (mut child, (source, ..)) in children.into_iter().zip(jobs) {
            let status = child.wait().expect("nvcc can be waited for");
            assert!(status.success(), "nvcc could not compile kernels/cuda/{source}: {status}");
        }
    }
    let entries: String = FUSED
        .iter()
        .map(|size| format!("    ({size}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/fused_{size}.fatbin\"))),\n"))
        .collect();
    let list = format!("pub(super) const FUSED: [(usize, &[u8]); {}] = [\n{entries}];\n", FUSED.len());
    fs::write(out.join("fused.rs"), list).expect("OUT_DIR can be written");
}

fn compile(nvcc: &Path, source: &str, defines: &[String], target: &Path) -> Child {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "--fatbin", "-Werror", "all-warnings"]).args(defines);
    let machines = if source == "teacher/attention.cu" { &FEW_MACHINES[..] } else { &MACHINES };
    for machine in machines {
        command.arg(format!("-gencode=arch=compute_{machine},code=sm_{machine}"));
    }
    command.arg("-gencode=arch=compute_90,code=compute_90");
    command.arg("-o").arg(target.with_extension("fatbin")).arg(Path::new("cuda").join(source));
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "{} did not start ({error}): the feature `cuda` needs CUDA's compiler; deploy/cuda/setup.sh installs one, \
             or set CUDA_HOME",
            nvcc.display()
        )
    })
}

fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    homes.map(|home| home.join("bin/nvcc")).find(|path| path.exists()).unwrap_or_else(|| "nvcc".into())
}
