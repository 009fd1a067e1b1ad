//! Manifests as values of the types that a cluster has for them.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::custom::{
    CertificateSpec, Custom, IssuerSpec, PodMonitorSpec, RuleSpec, ScaledObjectSpec, ServiceMonitorSpec,
};
use crate::files::Kustomization;

/// Has the object read as what it says that it is, and written again: whatever its type doesn't have is missing then.
pub(crate) fn check(object: &Value) -> Result<(), String> {
    let of = |field: &str| object[field].as_str().unwrap_or_default();
    let round_trip: fn(&Value) -> Result<Value, String> = match (of("apiVersion"), of("kind")) {
        ("v1", "Namespace") => through::<Namespace>,
        ("v1", "ServiceAccount") => through::<ServiceAccount>,
        ("v1", "Service") => through::<Service>,
        ("v1", "ConfigMap") => through::<ConfigMap>,
        ("v1", "PersistentVolumeClaim") => through::<PersistentVolumeClaim>,
        ("apps/v1", "Deployment") => through::<Deployment>,
        ("apps/v1", "StatefulSet") => through::<StatefulSet>,
        ("batch/v1", "Job") => through::<Job>,
        ("networking.k8s.io/v1", "NetworkPolicy") => through::<NetworkPolicy>,
        ("policy/v1", "PodDisruptionBudget") => through::<PodDisruptionBudget>,
        ("scheduling.k8s.io/v1", "PriorityClass") => through::<PriorityClass>,
        ("monitoring.coreos.com/v1", "ServiceMonitor") => through::<Custom<ServiceMonitorSpec>>,
        ("monitoring.coreos.com/v1", "PodMonitor") => through::<Custom<PodMonitorSpec>>,
        ("monitoring.coreos.com/v1", "PrometheusRule") => through::<Custom<RuleSpec>>,
        ("keda.sh/v1alpha1", "ScaledObject") => through::<Custom<ScaledObjectSpec>>,
        ("cert-manager.io/v1", "Issuer") => through::<Custom<IssuerSpec>>,
        ("cert-manager.io/v1", "Certificate") => through::<Custom<CertificateSpec>>,
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") | ("kustomize.config.k8s.io/v1alpha1", "Component") => {
            through::<Kustomization>
        }
        (version, kind) => return Err(format!("{kind:?} of {version:?} is no kind that is known here")),
    };
    let read = round_trip(object)?;
    kept(object, &read, &mut String::new())
}

fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

/// Whether what was written has all that was read, and nothing else. A part of a manifest, which is laid over another, lacks fields
/// that its type must have: those come out empty.
fn kept(said: &Value, read: &Value, path: &mut String) -> Result<(), String> {
    let before = path.len();
    match (said, read) {
        (Value::Object(said), Value::Object(read)) => {
            for (key, value) in said {
                path.push_str(&format!(".{key}"));
                let found = read.get(key).ok_or_else(|| format!("{path} is no field"))?;
                kept(value, found, path)?;
                path.truncate(before);
            }
            let added = read.iter().find(|(key, value)| !said.contains_key(*key) && !is_empty(value));
            added.map_or(Ok(()), |(key, value)| Err(format!("{path}.{key} became {value}")))
        }
        (Value::Array(said), Value::Array(read)) if said.len() == read.len() => {
            for (index, (said, read)) in said.iter().zip(read).enumerate() {
                path.push_str(&format!("[{index}]"));
                kept(said, read, path)?;
                path.truncate(before);
            }
            Ok(())
        }
        _ if said == read => Ok(()),
        _ => Err(format!("{path}: {said} became {read}")),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Fields that hold what anybody may name as they like.
const FREE: [&str; 6] = ["annotations", "data", "labels", "limits", "matchLabels", "requests"];

/// The object with one key misspelt, for each of its keys; and which one.
pub(crate) fn misspelt(object: &Value) -> Vec<(String, Value)> {
    let is_service = object["kind"] == "Service";
    let mut paths = Vec::new();
    collect(object, &mut Vec::new(), &mut paths);
    let is_fixed = |path: &&Vec<Step>| {
        let holder = path.iter().rev().skip(1).find_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        let is_of_trigger = path.iter().any(|step| matches!(step, Step::Key(key) if key == "triggers"));
        match holder {
            Some("selector") => !is_service,
            Some("metadata") => !is_of_trigger,
            Some(key) => !FREE.contains(&key),
            None => true,
        }
    };
    let changed = paths.iter().filter(is_fixed).map(|path| {
        let mut object = object.clone();
        misspell(&mut object, path);
        (path.iter().map(Step::to_string).collect(), object)
    });
    changed.collect()
}

#[derive(Clone)]
enum Step {
    Key(String),
    Index(usize),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key) => write!(f, ".{key}"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

fn collect(value: &Value, path: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
    let below: Vec<(Step, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (Step::Key(key.clone()), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(index, value)| (Step::Index(index), value)).collect(),
        _ => Vec::new(),
    };
    for (step, value) in below {
        path.push(step);
        if matches!(path.last(), Some(Step::Key(_))) {
            paths.push(path.clone());
        }
        collect(value, path, paths);
        path.pop();
    }
}

fn misspell(value: &mut Value, path: &[Step]) {
    match (value, path) {
        (Value::Object(map), [Step::Key(key)]) => {
            let renamed = std::mem::take(map).into_iter();
            *map = renamed
                .map(|(found, value)| if found == *key { (found + "s", value) } else { (found, value) })
                .collect::<Map<_, _>>();
        }
        (value, [Step::Key(key), rest @ ..]) => misspell(&mut value[key], rest),
        (value, [Step::Index(index), rest @ ..]) => misspell(&mut value[*index], rest),
        (_, []) => {}
    }
}
