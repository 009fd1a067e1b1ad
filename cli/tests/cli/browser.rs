//! A browser without a window, driven by its own protocol over pipes.

use std::cell::RefCell;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// "no" has the tests of the page do without one, and "yes" fail where there is none.
const WANTED: &str = "DELTACONV_TEST_BROWSER";
/// Its executable, where it has another name.
const EXECUTABLE: &str = "DELTACONV_CHROMIUM";
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// An answer that takes longer doesn't come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The browser reads what it is told from descriptor 3 and answers on 4.
const PIPES: &str = "exec \"$0\" \"$@\" 3<&0 4>&1 >/dev/null";

/// A browser with one page.
pub(crate) struct Browser {
    process: Child,
    told: RefCell<ChildStdin>,
    said: Receiver<Value>,
    last: RefCell<u64>,
    session: String,
    events: RefCell<Vec<Value>>,
    // Removed with the process.
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one; nothing where the tests are to do without, or where there is none and nobody insists.
    ///
    /// # Panics
    /// Where there is none and one is wanted.
    #[allow(clippy::print_stderr, reason = "who reads that the tests passed is to know what they did not see")]
    pub(crate) fn start() -> Option<Self> {
        let wanted = env::var(WANTED).unwrap_or_default();
        if wanted == "no" {
            return None;
        }
        let Some(executable) = executable() else {
            let text = format!(
                "the page is tested in Chromium, and there is none: `apt-get install chromium` brings it; {EXECUTABLE} names \
                 its executable where it isn't on the PATH as one of {NAMES:?}"
            );
            assert_ne!(wanted, "yes", "{text}");
            eprintln!("not tested: {text}");
            return None;
        };
        let profile = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            PIPES,
            &executable,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]);
        command.args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a browser");
        let told = process.stdin.take().expect("a pipe");
        let output = process.stdout.take().expect("a pipe");
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).expect("JSON");
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            process,
            told: RefCell::new(told),
            said,
            last: RefCell::new(0),
            session: String::new(),
            events: RefCell::default(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        // Of the processor, so that it is the same on a machine that is busy.
        browser.call("Performance.enable", json!({"timeDomain": "threadTicks"}));
        Some(browser)
    }

    /// Calls a method of the protocol, and keeps what happens meanwhile.
    pub(crate) fn call(&self, method: &str, parameters: Value) -> Value {
        let id = self.last.replace_with(|last| *last + 1) + 1;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&message).expect("JSON");
        bytes.push(0);
        self.told.borrow_mut().write_all(&bytes).expect("the browser listens");
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(answer) if answer["id"] == id => {
                    assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                    return answer["result"].clone();
                }
                Ok(event) => self.events.borrow_mut().push(event),
                Err(RecvTimeoutError::Timeout) => panic!("the browser doesn't answer to {method}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser ended before it answered to {method}"),
            }
        }
    }

    /// The value of an expression on the page.
    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        let wanted = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", wanted);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// The same of an expression that is a text.
    pub(crate) fn text(&self, expression: &str) -> String {
        self.evaluate(expression).as_str().unwrap_or_else(|| panic!("{expression} is no text")).to_owned()
    }

    /// The processor's time that the page's thread has taken.
    pub(crate) fn worked(&self) -> Duration {
        let metrics = self.call("Performance.getMetrics", json!({}))["metrics"].clone();
        let mut metrics = metrics.as_array().expect("metrics").iter();
        let tasks = metrics.find(|metric| metric["name"] == "TaskDuration").expect("the tasks' time");
        Duration::from_secs_f64(tasks["value"].as_f64().expect("seconds"))
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
    }

    /// What happened so far, by the names of the protocol.
    pub(crate) fn events(&self, method: &str) -> Vec<Value> {
        // Whatever was said before is read by then.
        self.evaluate("0");
        let events = self.events.borrow();
        events.iter().filter(|event| event["method"] == method).map(|event| event["params"].clone()).collect()
    }

    /// As wide as a device, in a colour scheme.
    pub(crate) fn look(&self, width: u32, scheme: &str) {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn executable() -> Option<String> {
    let named = env::var(EXECUTABLE).ok().filter(|named| !named.is_empty());
    named.or_else(|| {
        let folders: Vec<_> = env::split_paths(&env::var_os("PATH")?).collect();
        let is_there =
            |name: &&&str| folders.iter().any(|folder: &std::path::PathBuf| Path::new(folder).join(name).is_file());
        NAMES.iter().find(is_there).map(|name| (*name).to_owned())
    })
}
