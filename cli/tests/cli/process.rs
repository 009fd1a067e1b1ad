//! Processes that tests start, stop and wait for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Far longer than anything takes on a busy machine; only a test that would fail waits for it.
const DEADLINE: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(30);

/// The executable under test, away from the settings of who runs the tests.
pub(crate) fn deltaconv() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deltaconv"));
    let coordinator =
        ["DELTACONV_COORDINATOR", "DELTACONV_CREDENTIALS", "DELTACONV_INVITATION", "DELTACONV_INVITATION_FILE"];
    let others =
        ["DELTACONV_ALLOW_PLAINTEXT", "DELTACONV_CONFIG", "DELTACONV_OUTPUT", "DELTACONV_LOG_FORMAT", "NO_COLOR"];
    for setting in coordinator.into_iter().chain(others) {
        command.env_remove(setting);
    }
    // Nobody's own settings.
    command.env("XDG_CONFIG_HOME", "/nonexistent").env("RUST_LOG", "info").stdin(Stdio::null());
    command
}

/// Asks again until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// What a command said.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A process in the background, killed when the test ends.
pub(crate) struct Running {
    child: Child,
    stderr: PathBuf,
    stdout: PathBuf,
}

impl Running {
    /// Starts a command; what it writes goes to files in `folder`, named after `name`. Its stdin is a pipe that closes
    /// with the test.
    pub(crate) fn start(command: &mut Command, folder: &Path, name: &str) -> Self {
        let (stdout, stderr) = (folder.join(format!("{name}.stdout")), folder.join(format!("{name}.stderr")));
        let create = |path: &Path| File::create(path).expect("a file for output");
        let child = command
            .stdin(Stdio::piped())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .expect("the executable starts");
        Self { child, stderr, stdout }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a signal to a process of this test");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills it, and says how it ended: by that, unless it had ended before.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for")
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("a process to end", || self.child.try_wait().expect("waited for"))
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("waited for").is_some()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }
}

impl Drop for Running {
    #[allow(clippy::print_stdout, reason = "what a process said explains why its test failed")]
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("--- {}\n{}", self.stderr.display(), self.stderr());
        }
    }
}

/// Whether a process that isn't ours to wait for is there.
pub(crate) fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Sends a signal to a process that isn't ours to wait for.
pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("a signal to a child of a demo");
}
