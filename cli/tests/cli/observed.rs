//! What an operator and a monitoring system see of a coordinator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::process::{deltaconv, said, until};
use crate::scaled;
use crate::service::Coordinator;

/// The status and the text that the coordinator answers to a GET by HTTP/1.1.
fn get(coordinator: &Coordinator, path: &str) -> (u16, String) {
    http(coordinator.url.trim_start_matches("http://"), path)
}

/// The same of any server.
pub(crate) fn http(host: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(host).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{answer}")), answer)
}

fn events(coordinator: &Coordinator, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["events", "-o", "json", "--coordinator", &coordinator.url], arguments].concat();
    let shown = deltaconv().args(arguments).output().expect("runs");
    assert!(shown.status.success(), "{}", said(&shown));
    String::from_utf8_lossy(&shown.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

#[test]
fn what_happened_to_a_job_is_told_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    let worker = coordinator.worker("one");
    until("the worker to join", || coordinator.worker_id("one"));
    assert!(coordinator.run(&["pause", &job]).status.success());
    assert!(coordinator.run(&["cancel", &job, "--yes"]).status.success());
    drop(worker);

    let of_job = events(&coordinator, &[&job]);
    assert_eq!(kinds(&of_job), ["job-submitted", "stage-began", "job-paused", "job-cancelled"]);
    assert!(kinds(&events(&coordinator, &[])).contains(&"worker-joined"));
    let cursor = of_job[1]["sequence"].as_u64().or_else(|| of_job[1]["sequence"].as_str()?.parse().ok());
    let cursor = cursor.expect("a cursor").to_string();
    assert_eq!(kinds(&events(&coordinator, &[&job, "--after", &cursor])), ["job-paused", "job-cancelled"]);

    let coordinator = coordinator.start_again();
    assert_eq!(events(&coordinator, &[&job]), of_job);
    assert_eq!(kinds(&events(&coordinator, &[])).last(), Some(&"coordinator-started"));
    let text = said(&coordinator.run(&["events", &job]));
    assert!(text.starts_with("TIME") && text.contains("job-cancelled"), "{text}");
    let unknown = coordinator.run(&["events", "nobodys-job"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", said(&unknown));
}

#[test]
fn a_coordinator_says_how_it_is_by_http() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    assert_eq!(get(&coordinator, "/healthz").0, 200);
    assert_eq!(get(&coordinator, "/readyz").0, 200);
    assert_eq!(get(&coordinator, "/nothing").0, 404);
    coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    let (status, text) = get(&coordinator, "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("deltaconv_jobs{state=\"running\"} 1") && text.contains("# EOF"), "{text}");
    assert!(!text.contains("deltaconv_tasks{stage=\"capture\",state=\"waiting\"} 0"), "{text}");
}

/// The next view that a page is sent, by the kind of its message.
fn next_view(page: &mut impl BufRead) -> (String, Value) {
    let mut lines = page.lines().map(|line| line.expect("a line"));
    let news = |line: String| line.strip_prefix("event: ").filter(|kind| *kind != "alive").map(str::to_owned);
    let kind = lines.find_map(news).expect("a message");
    let data = lines.next().expect("its data");
    let json = data.strip_prefix("data: ").unwrap_or_else(|| panic!("{data}"));
    (kind, serde_json::from_str(json).expect("JSON"))
}

fn open_page(coordinator: &Coordinator, path: &str) -> BufReader<TcpStream> {
    let host = coordinator.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("sent");
    BufReader::new(stream)
}

#[test]
fn a_page_is_sent_what_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    for (path, kind) in [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let (status, text) = get(&coordinator, path);
        assert!(status == 200 && text.to_lowercase().contains(&format!("content-type: {kind}")), "{path}: {text}");
        assert!(text.contains("default-src 'none'"), "{path} may load what is elsewhere");
    }
    assert!(!get(&coordinator, "/").1.contains("unsafe-inline"), "what is injected could run");
    let mut jobs = open_page(&coordinator, "/api/live/jobs");
    assert_eq!(next_view(&mut jobs).1["jobs"].as_array().map(Vec::len), Some(0));
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    assert_eq!(next_view(&mut jobs).1["jobs"][0]["job_id"], job.as_str());

    let mut page = open_page(&coordinator, &format!("/api/live/job/{job}"));
    let (kind, view) = next_view(&mut page);
    assert_eq!((kind.as_str(), &view["job"]["summary"]["state"]), ("message", &Value::from("running")));
    assert!(view["job"]["waiting_for"].as_str().is_some_and(|text| !text.is_empty()), "{view:#}");
    assert!(coordinator.run(&["cancel", &job, "--yes"]).status.success());
    let cancelled = next_view(&mut page).1;
    assert_eq!(cancelled["job"]["summary"]["state"], "cancelled");
    assert!(cancelled["events"].as_array().is_some_and(|events| events.iter().any(|e| e["kind"] == "job-cancelled")));

    for (path, status, told) in [
        (format!("/api/job/{job}/samples.png"), 404, "isn't done"),
        (format!("/api/job/{job}/report.json"), 404, "isn't done"),
        ("/api/job/nobodys-job/samples.png".into(), 404, "nobodys-job"),
        ("/api/job/..%2F..%2Fetc/report.json".into(), 400, "not valid"),
    ] {
        let (found, text) = get(&coordinator, &path);
        assert!(found == status && text.contains(told) && text.contains("nosniff"), "{path}: {text}");
    }

    let (kind, refused) = next_view(&mut open_page(&coordinator, "/api/live/job/nobodys-job"));
    assert!(
        kind == "refused" && refused["message"].as_str().is_some_and(|text| text.contains("nobodys-job")),
        "{refused}"
    );
}

#[test]
fn a_coordinator_whose_disk_is_full_is_healthy_and_not_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start_with(folder.path(), &["--keep-free", "1000000GB"]);
    assert_eq!(get(&coordinator, "/healthz").0, 200);
    let (status, text) = get(&coordinator, "/readyz");
    assert!(status == 503 && text.contains("--keep-free"), "{text}");
    let (_, text) = get(&coordinator, "/metrics");
    assert!(text.contains("deltaconv_read_only 1"), "{text}");
}
