//! A coordinator that is exposed: certificates, invitations and who may do what, by the commands that people have.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::process::{Running, deltaconv, said, until};
use crate::service;

/// A coordinator with certificates, all in one folder.
struct Exposed {
    folder: tempfile::TempDir,
    url: String,
    process: Running,
}

impl Exposed {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let certs = folder.path().join("certs");
        let made =
            deltaconv().args(["certs", "init", "--host", "127.0.0.1", "--out"]).arg(&certs).output().expect("runs");
        assert!(made.status.success(), "{}", said(&made));
        let (process, url) = Self::listen(folder.path(), "127.0.0.1:0");
        Self { folder, url, process }
    }

    fn listen(folder: &Path, address: &str) -> (Running, String) {
        let address_file = folder.join("address");
        // It may not be there yet.
        let _ = std::fs::remove_file(&address_file);
        let mut command = deltaconv();
        command.args(["coordinator", "--exit-with-parent", "--listen", address, "--allow-store"]);
        command.arg(folder.join("jobs")).arg("--certs").arg(folder.join("certs"));
        command.arg("--state").arg(service::state(folder)).arg("--address-file").arg(&address_file);
        let mut process = Running::start(&mut command, folder, "coordinator");
        let url = until("the coordinator to listen", || {
            assert!(!process.has_ended(), "{}", process.stderr());
            std::fs::read_to_string(&address_file).ok().filter(|url| !url.is_empty())
        });
        (process, url)
    }

    fn certs(&self, name: &str) -> PathBuf {
        self.folder.path().join("certs").join(name)
    }

    /// Runs a command as the holder of these credentials.
    fn run_as(&self, credentials: &Path, arguments: &[&str]) -> Output {
        let mut command = deltaconv();
        command.args(arguments).args(["--coordinator", &self.url]).arg("--credentials").arg(credentials);
        command.output().expect("runs")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["-o", "json"]].concat();
        let output = self.run_as(&self.certs("operator.pem"), &arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn worker(&self, name: &str, invitation: Option<&str>) -> Running {
        let mut command = deltaconv();
        command.args(["worker", "--exit-with-parent", "--name", name, "--threads", "1", "--identity"]);
        command.arg(self.folder.path().join(format!("identity-of-{name}")));
        command.envs(invitation.map(|invitation| ("DELTACONV_INVITATION", invitation)));
        Running::start(&mut command, self.folder.path(), name)
    }

    fn has_joined(&self, name: &str) -> Option<Value> {
        let workers = self.json(&["workers"]);
        let found =
            workers["workers"].as_array()?.iter().rfind(|worker| worker["name"] == name && worker["state"] == "idle");
        found.cloned()
    }
}

fn assert_refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert!(!output.status.success(), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word} is not in\n{said}"));
}

#[test]
fn who_has_no_certificate_or_not_the_right_one_gets_nowhere() {
    let exposed = Exposed::start();
    let (viewer, operator) = (exposed.certs("viewer.pem"), exposed.certs("operator.pem"));
    let nobody = deltaconv().args(["jobs", "--coordinator", &exposed.url]).output().expect("runs");
    assert_refused(&nobody, &["error[DC1002]", "not of the authority that is trusted"]);
    let plain = exposed.url.replace("https://", "http://");
    let plain = deltaconv().args(["jobs", "--coordinator", &plain]).output().expect("runs");
    assert!(!plain.status.success(), "{}", said(&plain));
    assert_refused(
        &exposed.run_as(&exposed.certs("coordinator.pem"), &["jobs"]),
        &["error[DC1001]", "coordinator.pem"],
    );
    let file = exposed.folder.path().join("none.pem");
    std::fs::write(&file, "no certificate").expect("written");
    assert_refused(&exposed.run_as(&file, &["jobs"]), &["error[DC1001]", "none.pem", "BEGIN CERTIFICATE"]);

    assert!(exposed.run_as(&viewer, &["jobs"]).status.success());
    assert_refused(&exposed.run_as(&viewer, &["workers", "invite"]), &["error[DC1004]", "viewer:viewer is viewer"]);
    let job = exposed.folder.path().join("job.toml");
    std::fs::write(&job, "teacher = \"s3://elsewhere/model\"\noutput = \"/tmp/outside\"\n").expect("written");
    let submit = ["submit", job.to_str().expect("UTF-8")];
    assert_refused(&exposed.run_as(&viewer, &submit), &["error[DC1004]"]);
    assert_refused(&exposed.run_as(&operator, &submit), &["error[DC1008]", "s3://elsewhere/model", "/jobs"]);

    let alice = deltaconv().args(["certs", "issue", "operator", "alice", "--dir"]).arg(exposed.certs("")).output();
    let alice = alice.expect("runs");
    let file = exposed.folder.path().join("alice.pem");
    std::fs::write(&file, &alice.stdout).expect("written");
    assert!(exposed.run_as(&file, &["jobs"]).status.success());
    let revoked = exposed.run_as(&operator, &["workers", "revoke", "operator:alice", "--yes"]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    assert_refused(&exposed.run_as(&file, &["jobs"]), &["error[DC1007]", "operator:alice was revoked"]);
    let shown = deltaconv().args(["certs", "show"]).arg(&file).output().expect("runs");
    assert!(said(&shown).contains("operator:alice") && said(&shown).contains("(in 36"), "{}", said(&shown));
}

#[test]
fn one_line_is_all_that_a_worker_needs_and_it_is_kept_nowhere() {
    let mut exposed = Exposed::start();
    let invited = exposed.json(&["workers", "invite"]);
    let invitation = invited["invitation"].as_str().expect("a line").to_owned();
    let first = exposed.worker("one", Some(&invitation));
    let joined = until("the worker to join", || exposed.has_joined("one"));
    let other = {
        let mut other = exposed.worker("two", Some(&invitation));
        other.wait();
        other.stderr()
    };
    assert!(other.contains("error[DC1006]") && other.contains("taken 1 times"), "{other}");

    // Its certificate lets it in again, without the line and also after the coordinator was away.
    drop(first);
    let again = exposed.worker("one", None);
    until("the worker to join again", || {
        exposed.has_joined("one").filter(|worker| worker["worker_id"] != joined["worker_id"])
    });
    let address = exposed.url.trim_start_matches("https://").to_owned();
    exposed.process.kill();
    let (process, url) = Exposed::listen(exposed.folder.path(), &address);
    (exposed.process, exposed.url) = (process, url);
    until("the worker to be there again", || exposed.has_joined("one"));

    let listed = exposed.json(&["workers", "invitations"]);
    assert_eq!(
        (&listed["invitations"][0]["used"], &listed["invitations"][0]["by"]),
        (&1.into(), &"operator:operator".into())
    );
    let identity = listed["identities"][0]["identity"].as_str().expect("an identity").to_owned();
    exposed.json(&["workers", "revoke", &identity, "--yes"]);
    let mut again = again;
    again.wait();
    assert!(again.stderr().contains("error[DC1007]"), "{}", again.stderr());

    // The line is nowhere but where it was given, and its secret not even there in another form.
    let parsed: deltaconv_proto::tls::Invitation = invitation.parse().expect("an invitation");
    let secrets = [invitation, parsed.token.secret.reveal()];
    let mut looked = 0;
    let mut folders = vec![exposed.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).expect("read");
            for secret in &secrets {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{}", path.display());
            }
            looked += 1;
        }
    }
    assert!(looked > 10, "the state, logs and the audit log are among them");
    let audit = std::fs::read_to_string(service::state(exposed.folder.path()).join("audit.jsonl")).expect("written");
    for did in ["Invite", "Enrol", "Join", "Revoke"] {
        assert!(audit.contains(&format!("\"did\":\"{did}\"")), "{did} is not in\n{audit}");
    }
}

#[test]
fn certificates_that_are_renewed_are_taken_without_a_restart() {
    let exposed = Exposed::start();
    let renewed = deltaconv().args(["certs", "renew", "--valid", "20d", "--dir"]).arg(exposed.certs("")).output();
    assert!(renewed.expect("runs").status.success());
    let events = until("the coordinator to see them", || {
        let listed = exposed.run_as(&exposed.certs("viewer.pem"), &["events", "-o", "json"]);
        let listed = String::from_utf8(listed.stdout).expect("UTF-8");
        let has = |kind: &str| listed.contains(kind);
        (has("certificates-changed") && has("certificate-ends")).then_some(listed)
    });
    assert!(events.contains("the certificate coordinator ends at"), "{events}");
}

#[test]
fn an_invitation_is_a_whole_line_or_nothing() {
    let worker = |invitation: &str| {
        let mut command = deltaconv();
        command.args(["worker", "--invitation", invitation]).output().expect("runs")
    };
    assert_refused(&worker("deltaconv1-AAAA"), &["error[DC1005]", "damaged"]);
    assert_refused(&worker("worker.token"), &["error[DC1005]", "workers invite"]);
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = deltaconv();
    let uninvited = command.arg("worker").arg("--identity").arg(folder.path()).output().expect("runs");
    assert_refused(&uninvited, &["error[DC1010]", "workers invite"]);
}

/// As what starts with a machine does it, with nobody to look at what is printed.
#[test]
fn certificates_are_made_once_and_an_invitation_lies_in_a_file_of_its_owner() {
    use std::os::unix::fs::PermissionsExt;

    let exposed = Exposed::start();
    let authority = std::fs::read(exposed.certs("authority.pem")).expect("read");
    let init = |more: &[&str]| {
        let mut command = deltaconv();
        command.args(["certs", "init", "--host", "127.0.0.1", "--out"]).arg(exposed.certs("")).args(more);
        command.output().expect("runs")
    };
    assert_refused(&init(&[]), &["authority.pem", "is there already"]);
    let again = init(&["--once"]);
    assert!(again.status.success() && again.stdout.is_empty(), "{}", said(&again));
    assert_eq!(std::fs::read(exposed.certs("authority.pem")).expect("read"), authority);

    let file = exposed.folder.path().join("invitation");
    let arguments = ["workers", "invite", "--out", file.to_str().expect("UTF-8")];
    let invited = exposed.run_as(&exposed.certs("operator.pem"), &arguments);
    let invitation = std::fs::read_to_string(&file).expect("read");
    assert!(invited.status.success() && !said(&invited).contains(invitation.trim()), "{}", said(&invited));
    assert_eq!(exposed.json(&arguments)["invitation"], "");
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let invitation = std::fs::read_to_string(&file).expect("read");
    let _worker = exposed.worker("one", Some(invitation.trim()));
    until("the worker to join", || exposed.has_joined("one"));
}
