//! Pages of the documentation that the program makes, and what an error's code means.

use std::path::Path;

use serde_json::Value;

use crate::process::{deltaconv, said};

/// Pages that the program makes, by what has it print them.
const PAGES: [(&str, &str); 4] = [
    ("errors", "docs/errors.md"),
    ("cli", "docs/reference/cli.md"),
    ("config", "docs/reference/config.md"),
    ("schema", "docs/reference/schema.json"),
];

#[test]
fn the_pages_that_the_program_makes_are_what_it_prints() {
    let stale = PAGES.into_iter().filter(|(name, page)| {
        let printed = deltaconv().args(["reference", name]).output().expect("runs");
        assert!(printed.status.success(), "{}", said(&printed));
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
        printed.stdout != std::fs::read(page).unwrap_or_default()
    });
    let stale: Vec<String> = stale.map(|(name, page)| format!("deltaconv reference {name} > {page}")).collect();
    assert!(stale.is_empty(), "not what the program says any more; run\n{}", stale.join("\n"));
}

#[test]
fn the_code_of_an_error_is_explained() {
    let explain = |arguments: &[&str]| deltaconv().arg("explain-error").args(arguments).output().expect("runs");
    let refused = deltaconv().args(["jobs", "--coordinator", "http://127.0.0.1:1"]).output().expect("runs");
    let lines = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(lines.starts_with("error[DC0003]: no coordinator answers"), "{lines}");
    assert_eq!(lines.lines().last(), Some("more: deltaconv explain-error DC0003"));

    let text = said(&explain(&["DC0003"]));
    assert!(
        text.contains("DC0003: No coordinator answers") && text.contains("deltaconv coordinator --state"),
        "{text}"
    );
    let json: Value = serde_json::from_slice(&explain(&["3", "-o", "json"]).stdout).expect("JSON");
    assert_eq!((&json["version"], &json["code"]), (&Value::from(1), &Value::from("DC0003")));
    assert!(json["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{json}");

    let all: Value = serde_json::from_slice(&explain(&["-o", "json"]).stdout).expect("JSON");
    let codes = all["errors"].as_array().expect("a list").len();
    assert_eq!(said(&explain(&[])).lines().count(), codes + 1, "a heading and a line for each");

    let unknown = explain(&["DC9999"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", said(&unknown));
    assert!(
        said(&unknown).contains("error[DC0007]") && said(&unknown).contains("the nearest is DC"),
        "{}",
        said(&unknown)
    );
}
