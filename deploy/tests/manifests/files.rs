//! The files of deploy/kubernetes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn kubernetes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes")
}

pub(crate) fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The files below a folder whose names end so, in order.
pub(crate) fn below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in listed {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(below(&path, ending));
        } else if path.extension().is_some_and(|found| found == ending) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The documents of a file.
pub(crate) fn read(file: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// A path as messages have it.
fn name(file: &Path) -> String {
    file.strip_prefix(kubernetes()).unwrap_or(file).display().to_string()
}

/// Every manifest, and every part of one that is laid over another.
pub(crate) fn objects() -> Vec<(String, Value)> {
    let files = below(&kubernetes(), "yaml");
    let read = |file: PathBuf| read(&file).into_iter().map(move |object| (name(&file), object));
    files.into_iter().flat_map(read).collect()
}

/// Every config.toml, by the file that it is made of.
pub(crate) fn settings() -> Vec<(String, toml::Table)> {
    let files = below(&kubernetes(), "toml");
    assert!(!files.is_empty());
    let parse = |file: &PathBuf| text(file).parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    files.iter().map(|file| (name(file), parse(file))).collect()
}

/// What the base comes to: its manifests, and the ConfigMaps of its files.
pub(crate) fn base() -> Vec<Value> {
    let folder = kubernetes().join("base");
    let (_, kustomization) = kustomizations().into_iter().find(|(found, _)| *found == folder).expect("a base");
    let mut objects: Vec<Value> =
        kustomization.resources.iter().flat_map(|resource| read(&folder.join(resource))).collect();
    for map in &kustomization.config_map_generator {
        let data: BTreeMap<&str, String> = map
            .files
            .iter()
            .map(|file| {
                let (key, path) = file.split_once('=').unwrap_or((file, file));
                (key, text(&folder.join(path)))
            })
            .collect();
        objects
            .push(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": map.name }, "data": data }));
    }
    objects
}

/// What kustomize reads, as far as it is used here.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    config_map_generator: Vec<ConfigMapArgs>,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigMapArgs {
    name: String,
    behavior: Option<String>,
    files: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: Option<String>,
    patch: Option<String>,
    target: Option<Target>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    new_tag: Option<String>,
}

impl Kustomization {
    /// Whatever it takes from files and folders, but for components.
    pub(crate) fn resources(&self) -> Vec<String> {
        let maps = self.config_map_generator.iter().flat_map(|map| &map.files);
        let maps = maps.map(|file| file.split_once('=').map_or(file.as_str(), |(_, path)| path).to_owned());
        let patches = self.patches.iter().filter_map(|patch| patch.path.clone());
        self.resources.iter().cloned().chain(maps).chain(patches).collect()
    }

    pub(crate) fn components(&self) -> Vec<String> {
        self.components.clone()
    }

    pub(crate) fn is_component(&self) -> bool {
        self.kind == "Component"
    }

    /// Names and tags.
    pub(crate) fn images(&self) -> Vec<(String, Option<String>)> {
        self.images.iter().map(|image| (image.name.clone(), image.new_tag.clone())).collect()
    }
}

/// Every kustomization, by its folder.
pub(crate) fn kustomizations() -> Vec<(PathBuf, Kustomization)> {
    let files = below(&kubernetes(), "yaml").into_iter().filter(|file| file.ends_with("kustomization.yaml"));
    let parse = |file: PathBuf| {
        let parsed = serde_saphyr::from_str(&text(&file)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (file.parent().expect("a folder").to_path_buf(), parsed)
    };
    files.map(parse).collect()
}
