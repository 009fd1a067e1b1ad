//! Network and mounts of a test's own: a test that cuts a network or fills a disk starts itself again in namespaces.

use std::env;
use std::process::Command;

use crate::process::said;

/// Set to "yes" in the process that is in namespaces of its own. "no" has tests do without.
const ISOLATED: &str = "DELTACONV_TEST_ISOLATED";
/// Whether a test can do in its namespaces what it has to, tried in some that nobody uses.
const TRIAL: &str = "ip link add near type veth peer name far && mount -t tmpfs none /tmp";
/// Runs what follows it.
const RUN: &str = "exec \"$0\" \"$@\"";

/// Runs a shell's command in a user namespace in which this user is root, with a network and mounts that nobody else sees. Of
/// the network there is but the loopback interface.
fn unshared(command: &str) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"]);
    unshare.arg(format!("ip link set lo up && {command}"));
    unshare
}

/// Runs a test, by its full name, in namespaces of its own; `false` tells it that this machine lets it have none, and that it
/// has to find other ways. Machines that run containers often forbid them.
pub(crate) fn run_isolated(test: &str, body: impl FnOnce(bool)) {
    match env::var(ISOLATED).as_deref() {
        Ok("yes") => return body(true),
        Ok("no") => return body(false),
        _ => {}
    }
    let tried = unshared(TRIAL).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return body(false);
    }
    let this = env::current_exe().expect("this executable");
    let again = unshared(RUN).arg(this).args([test, "--exact", "--nocapture"]).env(ISOLATED, "yes").output();
    let again = again.expect("runs");
    tell(&said(&again));
    assert!(again.status.success(), "{test} failed in its namespaces, see above");
    assert!(said(&again).contains("1 passed"), "there is no test {test}");
}

/// Shown when the test fails, or is asked to.
#[allow(clippy::print_stdout, reason = "the harness keeps it")]
pub(crate) fn tell(text: &str) {
    println!("{text}");
}
