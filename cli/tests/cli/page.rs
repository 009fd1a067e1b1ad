//! The coordinator's page, in a browser.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use deltaconv_worker::bench::cluster::Cluster;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::process::{deltaconv, until};
use crate::scaled;
use crate::service::Coordinator;

/// Steps of a job that is at work for long enough to be looked at.
const MANY_STEPS: u32 = 4000;
const WIDTHS: [u32; 3] = [390, 800, 1280];
const SCHEMES: [&str; 2] = ["light", "dark"];
/// Of the page's thread, for one message: there is one a second, and more than half of its time is left for who uses the page.
const MOST_FOR_A_MESSAGE: Duration = Duration::from_millis(400);
const WATCHED: Duration = Duration::from_secs(10);
/// Captures of the load's job.
const CAPTURES: usize = 16;
const LAYERS: u32 = 200;
const WORKERS: usize = 1000;
/// Has the page keep how long its tasks took, and how often it drew.
const MEASURE: &str = include_str!("measure.js");
const CONNECTION: &str = "document.getElementById('connection').textContent";
const MAIN: &str = "document.getElementById('main')?.textContent ?? ''";
/// The steps that the layers' table shows.
const STEPS: &str = "[...document.querySelectorAll('td[data-title=Step]')].map(cell => Number(cell.textContent))";

/// Nothing went wrong on the page but what is `expected` of a coordinator that was away, and nothing came from elsewhere.
fn assert_clean(browser: &Browser, url: &str, expected: &[&str]) {
    let thrown = browser.events("Runtime.exceptionThrown");
    assert!(thrown.is_empty(), "{thrown:#?}");
    let said = browser.events("Runtime.consoleAPICalled");
    assert!(said.is_empty(), "{said:#?}");
    for entry in browser.events("Log.entryAdded") {
        let text = entry["entry"]["text"].as_str().unwrap_or_default();
        assert!(expected.iter().any(|part| text.contains(part)), "{entry:#}");
    }
    for request in browser.events("Network.requestWillBeSent") {
        let from = request["request"]["url"].as_str().unwrap_or_default();
        let is_ours = from.strip_prefix(url).is_some_and(|rest| rest.starts_with('/'));
        assert!(is_ours || from == "data:," || from == "about:blank", "the page asked {from}");
    }
}

/// It can be read at every width and in both schemes, and whatever is more than text has a name.
fn assert_readable(browser: &Browser, view: &str) {
    for (width, scheme) in WIDTHS.iter().flat_map(|width| SCHEMES.map(|scheme| (*width, scheme))) {
        browser.look(width, scheme);
        let wide = browser.evaluate("document.documentElement.scrollWidth");
        assert!(wide.as_u64().is_some_and(|wide| wide <= width.into()), "{view} is {wide} wide at {width} px");
        let pale = browser.evaluate(CONTRAST);
        assert_eq!(pale, json!([]), "{view} at {width} px, {scheme}");
    }
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let named: BTreeSet<&str> = ["link", "button", "image", "progressbar", "combobox", "searchbox", "region"].into();
    let mut seen = 0;
    for node in tree["nodes"].as_array().expect("nodes") {
        let (role, name) = (&node["role"]["value"], node["name"]["value"].as_str().unwrap_or_default());
        if role.as_str().is_some_and(|role| named.contains(role)) && node["ignored"] != true {
            assert!(!name.trim().is_empty(), "{view}: {node:#}");
            seen += 1;
        }
    }
    assert!(seen > 3, "{view} has {seen} links, images and the like");
    let levels =
        browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(heading => Number(heading.tagName[1]))");
    let levels: Vec<u64> = levels.as_array().expect("headings").iter().filter_map(Value::as_u64).collect();
    assert!(levels.first() == Some(&1) && levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{view}: {levels:?}");
}

/// Texts whose colour differs too little from what is behind them.
const CONTRAST: &str = include_str!("contrast.js");

#[test]
fn a_page_follows_a_job_and_comes_back_with_its_coordinator() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job = scaled::job_file_of(folder.path(), &scaled::teacher(), &folder.path().join("out"), MANY_STEPS);
    let job = coordinator.submit(&job);
    let _worker = coordinator.worker("one");
    browser.open(&coordinator.url);
    until("the job on the page", || (browser.text(MAIN).contains(&job)).then_some(()));
    assert_readable(&browser, "jobs");

    // By its link, as people come to it.
    browser.evaluate("window.unbroken = true; document.querySelector('td a').click()");
    let sum =
        || browser.evaluate(&format!("{STEPS}.reduce((sum, step) => sum + step, 0)")).as_u64().unwrap_or_default();
    let before = until("a layer that trains", || Some(sum()).filter(|steps| *steps > 0));
    until("more steps", || (sum() > before).then_some(()));
    until("the layer map", || {
        browser.evaluate("document.querySelectorAll('canvas').length === 2").as_bool()?.then_some(())
    });
    assert_readable(&browser, "a running job");
    assert_clean(&browser, &coordinator.url, &[]);

    // Away and back at the same place.
    let url = coordinator.url.clone();
    let Coordinator { mut process, .. } = coordinator;
    process.kill();
    until("the page to miss it", || browser.text(CONNECTION).contains("away").then_some(()));
    let gone = sum();
    let address = url.trim_start_matches("http://");
    let coordinator = Coordinator::listen(folder.path(), address, &[], &[]);
    until("the page to find it", || (browser.text(CONNECTION) == "Live").then_some(()));
    until("other numbers", || (sum() != gone).then_some(()));
    let again = sum();
    until("live numbers", || (sum() != again).then_some(()));
    assert_eq!(browser.evaluate("window.unbroken"), true, "the page was loaded again");
    assert_clean(
        &browser,
        &url,
        &["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"],
    );

    for view in ["workers", "events"] {
        browser.evaluate(&format!("location.hash = '#/{view}'"));
        until("the view", || {
            browser
                .evaluate("document.querySelector('main table') !== null && document.title")
                .as_str()
                .map(str::to_lowercase)?
                .contains(view)
                .then_some(())
        });
        assert_readable(&browser, view);
    }
    browser.evaluate("location.hash = '#/job/nobodys-job'");
    until("a refusal", || browser.text(MAIN).contains("nobodys-job").then_some(()));
    drop(coordinator);
}

#[test]
fn a_page_shows_what_came_of_a_job() {
    let Some(browser) = Browser::start() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let coordinator = Coordinator::start(folder.path());
    let job = coordinator.submit(&scaled::job_file(folder.path(), &scaled::teacher(), &folder.path().join("out")));
    let worker = coordinator.worker("one");
    coordinator.done(&job);
    drop(worker);
    // What it remembers of the layers' errors goes with it.
    let coordinator = coordinator.start_again();
    browser.open(&format!("{}/#/job/{job}", coordinator.url));
    until("the samples", || {
        browser.evaluate("document.querySelector('img')?.naturalWidth > 300").as_bool()?.then_some(())
    });
    until("the curves", || {
        browser.evaluate("document.querySelectorAll('canvas').length === 2").as_bool()?.then_some(())
    });
    let kinds = format!(
        "Promise.all(['samples.png', 'report.json'].map(async file => {{ \
         const {{ headers }} = await fetch(`/api/job/{job}/${{file}}`); \
         return ['content-type', 'x-content-type-options'].map(name => headers.get(name)).join(); }}))"
    );
    assert_eq!(browser.evaluate(&kinds), json!(["image/png,nosniff", "application/json,nosniff"]));
    let figures = browser.text("document.getElementById('result').parentElement.textContent");
    assert!(figures.contains("Attention removed") && figures.contains("dB"), "{figures}");
    browser.evaluate("document.querySelectorAll('summary').forEach(summary => summary.click())");
    let rows =
        |of: &str| browser.evaluate(&format!("document.querySelectorAll('[aria-label=\"{of}\"] tbody tr').length"));
    until("the pictures' tables", || {
        (rows("Held-out errors by layer and time") == 7 && rows("Errors by step") == 7).then_some(())
    });
    assert_readable(&browser, "a job that is done");
    assert_clean(&browser, &coordinator.url, &[]);

    // By the keyboard alone.
    browser.evaluate("document.getElementById('layer').focus()");
    let key = json!({"type": "keyDown", "key": "ArrowDown", "code": "ArrowDown", "windowsVirtualKeyCode": 40});
    browser.call("Input.dispatchKeyEvent", key);
    until("a layer's figures", || {
        browser.text("document.querySelector('.readout').textContent").contains(": done, error").then_some(())
    });
    let reached = |name: &str| {
        let key = json!({"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
        browser.call("Input.dispatchKeyEvent", key);
        let outline =
            "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle";
        let outline = browser.evaluate(outline);
        assert!(outline == true || outline == "solid", "nobody sees where the focus is before {name}");
        browser.evaluate(&format!("document.activeElement.matches('{name}')")) == true
    };
    browser.evaluate("document.activeElement.blur(); scrollTo(0, 0)");
    for name in [
        "nav a",
        "[aria-label=Figures]",
        "[aria-label=Samples]",
        "#layer",
        "summary",
        "[aria-label=Layers]",
        "[aria-label=Events]",
    ] {
        until(name, || reached(name).then_some(()));
    }
}

/// A coordinator under load, in a process of its own.
struct Load {
    process: Child,
    url: String,
    token: String,
    // Removed with the process.
    _folder: tempfile::TempDir,
}

impl Load {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = deltaconv();
        command.args(["bench", "coordinator-process", "--tasks", "1", "--layers", &LAYERS.to_string(), "--state"]);
        let mut process = command
            .arg(folder.path())
            .env("RUST_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("read");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        let token = std::fs::read_to_string(folder.path().join("worker.token")).expect("a token");
        let url = format!("http://{}", ready["address"].as_str().expect("an address"));
        Self { process, url, token, _folder: folder }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_page_of_200_layers_and_one_of_1000_workers_stay_smooth() {
    let Some(browser) = Browser::start() else { return };
    let load = Load::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // Whoever records what training needs is done before there are layers to train.
    let mut first = runtime.block_on(Cluster::join(&load.url, &load.token, CAPTURES)).expect("workers");
    runtime.block_on(first.work(CAPTURES, CAPTURES, 0)).expect("captures");
    let mut cluster = runtime.block_on(Cluster::join(&load.url, &load.token, WORKERS)).expect("workers");
    runtime.spawn(async move { cluster.keep_time(Duration::from_secs(5), Duration::from_secs(600)).await });

    browser.look(1280, "light");
    browser.open(&load.url);
    until("the job", || browser.evaluate("document.querySelector('td a') !== null").as_bool()?.then_some(()));
    let job = browser.text("document.querySelector('td a').textContent");
    for (view, rows, at_least) in
        [(format!("job/{job}"), STEPS.to_owned(), LAYERS as usize), ("workers".into(), workers_by("Worker"), WORKERS)]
    {
        browser.evaluate(&format!("location.hash = '#/{view}'"));
        until(&view, || (browser.evaluate(&rows).as_array()?.len() >= at_least).then_some(()));
        browser.evaluate(MEASURE);
        let worked = browser.worked();
        let sizes = || -> Vec<usize> {
            let received = browser.events("Network.eventSourceMessageReceived");
            received.iter().map(|message| message["data"].as_str().map_or(0, str::len)).collect()
        };
        let before = sizes().len();
        let since = browser.evaluate("performance.now()").as_f64().expect("a time");
        let enough = since + WATCHED.as_secs_f64() * 1000.0;
        until("the time to pass", || (browser.evaluate("performance.now()").as_f64()? >= enough).then_some(()));
        let worked = browser.worked().saturating_sub(worked);
        let tasks = browser.evaluate("window.tasks");
        let drawn = browser.evaluate("window.drawn").as_u64().expect("a number");
        let messages = sizes().split_off(before);
        let tasks: Vec<f64> = tasks.as_array().expect("tasks").iter().filter_map(Value::as_f64).collect();
        let of_each = worked / messages.len().max(1) as u32;
        crate::isolation::tell(&format!(
            "{view}: messages of {messages:?} bytes, drawn {drawn} times, {of_each:?} of the page's thread for \
             each; tasks over 50 ms, on a machine that may be busy: {tasks:?}"
        ));
        assert!(messages.len() >= 7, "{view}: {} messages in {WATCHED:?}", messages.len());
        assert!(drawn + 1 >= messages.len() as u64, "{view}: drawn {drawn} times for {} messages", messages.len());
        assert!(of_each < MOST_FOR_A_MESSAGE, "{view}: {of_each:?} for each message");
    }
    assert_clean(&browser, &load.url, &[]);
}

fn workers_by(column: &str) -> String {
    format!("[...document.querySelectorAll('td[data-title={column}]')].map(cell => cell.textContent)")
}
