//! docs/reference/schema.json.

use deltaconv_proto::v1;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::commands::{config, doctor, explain_error, workers};

/// Of every command whose `-o json` is a contract: what each object on stdout is. The rest has no more than its version.
pub(super) fn page() -> String {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut commands = Map::new();
    let mut add = |command: &str, schema: schemars::Schema| {
        commands.insert(command.to_owned(), schema.to_value());
    };
    let generator = &mut generator;
    add("jobs", of::<v1::ListJobsResponse>(generator));
    for command in ["status", "watch", "cancel", "pause", "resume", "retry"] {
        add(command, of::<v1::JobStatus>(generator));
    }
    add("submit", of::<v1::SubmitResponse>(generator));
    add("submit --dry-run", of::<v1::PlanResponse>(generator));
    for command in ["workers", "workers drain", "workers return"] {
        add(command, of::<v1::ListWorkersResponse>(generator));
    }
    add("workers invite", of::<workers::Invited>(generator));
    add("events", of::<v1::Event>(generator));
    add("logs", of::<v1::TaskLog>(generator));
    add("explain", of::<v1::ExplainResponse>(generator));
    add("gc", of::<v1::CollectGarbageResponse>(generator));
    add("coordinator backup", of::<v1::BackupResponse>(generator));
    add("doctor", of::<doctor::Findings>(generator));
    add("config show", of::<config::Settings>(generator));
    add("explain-error CODE", of::<explain_error::Explained>(generator));
    add("explain-error", of::<explain_error::Listing>(generator));
    let mut page = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What deltaconv commands write to stdout with -o json",
        "description": "Made by `deltaconv reference schema`. Each object also has \"version\": 1, which changes when a field loses its \
                        meaning; fields may be added without. A number that isn't known is null. Commands that follow something \
                        write an object a line.",
        "commands": commands,
        "$defs": generator.take_definitions(true),
    });
    allow_null(&mut page);
    serde_json::to_string_pretty(&page).unwrap_or_default()
}

fn of<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

/// JSON has no NaN, in whose place stands null.
fn allow_null(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("type") == Some(&json!("number")) {
                fields.insert("type".to_owned(), json!(["number", "null"]));
            }
            fields.values_mut().for_each(allow_null);
        }
        Value::Array(values) => values.iter_mut().for_each(allow_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_writes_is_described_to_its_fields() {
        let page: Value = serde_json::from_str(&page()).expect("JSON");
        let resolve = |command: &str| {
            let reference =
                page["commands"][command]["$ref"].as_str().expect("a reference").trim_start_matches("#/$defs/");
            &page["$defs"][reference]
        };
        assert!(resolve("jobs")["properties"]["jobs"].is_object(), "{page:#}");
        let layer = &page["$defs"]["LayerStatus"]["properties"];
        assert_eq!(layer["held_out_error"]["type"], json!(["number", "null"]));
        assert!(layer["state"]["description"].as_str().is_some_and(|text| text.contains("waiting")), "{layer:#}");
    }
}
