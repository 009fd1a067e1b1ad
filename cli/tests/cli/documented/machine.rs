//! A folder that is a machine of a cluster to the commands of a page.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::faults::copy;
use crate::process::Running;
use crate::scaled;
use crate::slurm::Slurm;

/// Ends what the page left running; what it wrote explains why the page failed.
const PRELUDE: &str = "set -euo pipefail
exec 3<&0 </dev/null
trap 'code=$?
for alive in \"$DOCUMENTED_NOTES\"/*.alive; do
  [ ! -e \"$alive\" ] || kill -KILL \"$(cat \"${alive%.alive}.pid\")\" || true
done
[ $code -eq 0 ] || tail -n 20 \"$DOCUMENTED_NOTES\"/*.log >&2 || true
exit $code' EXIT
set -x
";

/// What makes any job of a page small.
const SMALL_RECIPE: [&str; 6] =
    ["samples = 32", "held_out_samples = 8", "shard_samples = 16", "steps = 10", "warmup_steps = 2", "batch = 8"];
const SMALL_EVALUATION: &str = "evaluation = { samples = 4, prompts = 1, ddim_steps = 2 }";

/// Commands with small jobs: a file that is written between `<<'END'` and `END` and names a teacher is one.
fn with_small_jobs(commands: &str) -> String {
    let mut whole = String::new();
    let mut file: Option<Vec<&str>> = None;
    for line in commands.lines() {
        file = match file {
            None => {
                whole += &format!("{line}\n");
                line.ends_with("<<'END'").then(Vec::new)
            }
            Some(lines) if line == "END" => {
                whole += &format!("{}END\n", small(&lines));
                None
            }
            Some(mut lines) => {
                lines.push(line);
                Some(lines)
            }
        };
    }
    assert!(file.is_none(), "a file has no end: {file:?}");
    whole
}

fn small(file: &[&str]) -> String {
    let is_job = file.iter().any(|line| line.starts_with("teacher = "));
    let has_recipe = file.contains(&"[recipe]");
    let mut text = String::new();
    if is_job {
        text += &format!("{SMALL_EVALUATION}\n");
    }
    if is_job && !has_recipe {
        text += &format!("recipe = {{ {} }}\n", SMALL_RECIPE.join(", "));
    }
    for line in file {
        text += &format!("{line}\n");
        if is_job && *line == "[recipe]" {
            text += &format!("{}\n", SMALL_RECIPE.join("\n"));
        }
    }
    text
}

/// The folder, with what lies in its bucket.
pub(super) struct Machine {
    // Its jobs end before their folder is gone.
    _slurm: Slurm,
    // Removed with this.
    folder: tempfile::TempDir,
    address: String,
}

impl Machine {
    /// `is_demonstrated`: a demo has run there.
    pub(super) fn new(is_demonstrated: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for made in
            ["bin", "work", "notes", "home", "var/lib", "etc/deltaconv", "nvme", "shared/bin", "shared/deltaconv"]
        {
            fs::create_dir_all(folder.path().join(made)).expect("made");
        }
        // Among what ends with the page, its jobs.
        let slurm = Slurm::in_folders(folder.path().join("bin"), folder.path().join("notes"));
        let machine = Self { _slurm: slurm, folder, address: format!("127.0.0.1:{}", free_port()) };
        let shared = machine.path("shared/bin/deltaconv");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_deltaconv"), shared).expect("linked");
        let program = machine.path("bin/deltaconv");
        fs::write(&program, include_str!("deltaconv.sh")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        copy(&scaled::teacher(), &machine.path("bucket/models/sd15"));
        for file in ["latents.safetensors", "prompt_embeddings.safetensors", "prompts.json"] {
            fs::create_dir_all(machine.path("bucket/latents")).expect("made");
            fs::copy(scaled::teacher().join(file), machine.path("bucket/latents").join(file)).expect("copied");
        }
        machine.put_pipeline();
        if is_demonstrated {
            copy(&scaled::quiet().out, &machine.path("work/deltaconv-demo"));
        }
        machine
    }

    /// A model with text encoders and a VAE, and pictures with captions.
    fn put_pipeline(&self) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/golden");
        for part in ["pipelines/sdxl", "teachers/sdxl"] {
            copy(&golden.join(part), &self.path("bucket/models/sdxl"));
        }
        copy(&scaled::teacher().join("scheduler"), &self.path("bucket/models/sdxl/scheduler"));
        let photos = self.path("bucket/photos");
        fs::create_dir_all(&photos).expect("made");
        for number in 0..64_u8 {
            let height = if number % 2 == 0 { 8 } else { 12 };
            let picture = fs::File::create(photos.join(format!("{number}.png"))).expect("made");
            let mut encoder = png::Encoder::new(picture, 8, height);
            encoder.set_color(png::ColorType::Rgb);
            let pixels = vec![number; 3 * 8 * height as usize];
            let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels));
            written.expect("a picture");
            fs::write(photos.join(format!("{number}.txt")), format!("picture {number}")).expect("written");
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Places and addresses of a cluster as they are here.
    fn here(&self, commands: &str) -> String {
        let here = self.folder.path().display();
        let mut commands = with_small_jobs(commands);
        for (there, here) in [
            ("10.0.0.5:7433", self.address.clone()),
            ("127.0.0.1:7433", self.address.clone()),
            // Whom its certificate is for.
            ("10.0.0.5", "127.0.0.1".to_owned()),
            ("0.0.0.0:9101", "127.0.0.1:0".to_owned()),
            ("/var/lib/deltaconv", format!("{here}/var/lib/deltaconv")),
            ("/etc/deltaconv", format!("{here}/etc/deltaconv")),
            ("/nvme", format!("{here}/nvme")),
            ("/shared", format!("{here}/shared")),
            ("s3://bucket", format!("file://{here}/bucket")),
        ] {
            commands = commands.replace(there, &here);
        }
        commands
    }

    /// Runs commands as one script.
    pub(super) fn run(&self, commands: &str) {
        let script = self.path("script.sh");
        fs::write(&script, format!("{PRELUDE}{}", self.here(commands))).expect("written");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = [self.path("bin")].into_iter().chain(std::env::split_paths(&path));
        let mut command = Command::new("bash");
        command.arg(&script).current_dir(self.path("work"));
        command.env("PATH", std::env::join_paths(paths).expect("a path"));
        command.env("HOME", self.path("home")).env("RUST_LOG", "info");
        for setting in [
            "XDG_CONFIG_HOME",
            "XDG_DATA_HOME",
            "STATE_DIRECTORY",
            "DELTACONV_CONFIG",
            "DELTACONV_CREDENTIALS",
            "DELTACONV_INVITATION",
            "DELTACONV_INVITATION_FILE",
            "DELTACONV_OUTPUT",
            "DELTACONV_LOG_FORMAT",
            "NO_COLOR",
        ] {
            command.env_remove(setting);
        }
        command.env("DELTACONV_COORDINATOR", format!("http://{}", self.address));
        command.env("DOCUMENTED_PROGRAM", env!("CARGO_BIN_EXE_deltaconv"));
        command
            .env("DOCUMENTED_NOTES", self.path("notes"))
            .env("FAKE_SLURM", self.path("notes"))
            .env("DOCUMENTED_ADDRESS", &self.address);
        let mut running = Running::start(&mut command, self.folder.path(), "page");
        let ended = running.wait();
        assert!(ended.success(), "{ended}: {}\n{}", running.stdout(), running.stderr());
    }
}

/// Below those that systems give to who asks for any, so that no other test is given it meanwhile.
fn free_port() -> u16 {
    // Processes that test at the same time begin in different places.
    let first = 20_000 + std::process::id() % 1000 * 10;
    let mut ports = (first..32_000).filter_map(|port| u16::try_from(port).ok());
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
