//! The manifests of deploy/kubernetes, read as a cluster reads them: each field must be one that its kind has, and what one file says
//! of another, of the program or of the documentation must be so.
//!
//! `.ci/kubernetes` has kustomize put the overlays together and names the folder with the results in DELTACONV_TEST_RENDERED; they are
//! looked at in the same way then. Without it the sources alone are.

mod custom;
mod files;
mod installation;
mod program;
mod typed;

use std::collections::BTreeSet;
use std::path::Path;

use files::{below, kustomizations, objects, read, repository, text};
use installation::Installation;
use serde_json::Value;
use typed::check;

/// What `.ci/kubernetes` rendered, by name; none where nobody did.
#[allow(clippy::print_stderr, reason = "who reads that the tests passed is to know what they did not see")]
fn rendered() -> Vec<(String, Vec<Value>)> {
    let Some(folder) = std::env::var_os("DELTACONV_TEST_RENDERED") else {
        eprintln!("not tested: overlays as they are put together: DELTACONV_TEST_RENDERED names no folder");
        return Vec::new();
    };
    let files = below(Path::new(&folder), "yaml");
    assert!(!files.is_empty(), "nothing is rendered in {folder:?}");
    let name = |file: &Path| file.file_stem().expect("a name").to_string_lossy().into_owned();
    files.iter().map(|file| (name(file), read(file))).collect()
}

#[test]
fn every_manifest_is_what_a_cluster_takes() {
    for (file, object) in objects() {
        check(&object).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    for (overlay, objects) in rendered() {
        for object in objects {
            check(&object).unwrap_or_else(|error| panic!("{overlay}, rendered: {error}"));
        }
    }
}

/// Each key of each manifest, with a letter too many: nothing takes it, but where keys are anybody's to choose.
#[test]
fn a_misspelt_field_is_refused() {
    let mut tried = 0;
    for (file, object) in objects() {
        assert_eq!(check(&object), Ok(()), "{file}: as it is");
        for (path, misspelt) in typed::misspelt(&object) {
            assert!(check(&misspelt).is_err(), "{file}: {path} is taken");
            tried += 1;
        }
    }
    assert!(tried > 500, "{tried} keys are hardly all");
}

#[test]
fn kustomizations_name_what_is_there_and_leave_nothing_out() {
    let mut components = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (folder, kustomization) in kustomizations() {
        let mut named = BTreeSet::new();
        for resource in kustomization.resources() {
            let path = folder.join(&resource);
            assert!(path.is_file() || path.join("kustomization.yaml").is_file(), "nothing is at {}", path.display());
            named.insert(path);
        }
        for component in kustomization.components() {
            let path = folder.join(&component).canonicalize().unwrap_or_else(|error| panic!("{component}: {error}"));
            used.insert(path);
        }
        let owned = below(&folder, "yaml").into_iter().chain(below(&folder, "toml"));
        for file in owned.filter(|file| !file.ends_with("kustomization.yaml")) {
            assert!(named.contains(&file), "{} is in no kustomization", file.display());
        }
        if kustomization.is_component() {
            components.insert(folder.canonicalize().expect("there"));
        }
    }
    assert_eq!(components, used, "each component is in an overlay, so that it is looked at in its place");
}

#[test]
fn images_are_of_this_version() {
    for (folder, kustomization) in kustomizations() {
        for (image, tag) in kustomization.images() {
            assert_eq!(tag.as_deref(), Some(env!("CARGO_PKG_VERSION")), "{image} in {}", folder.display());
        }
    }
    for (name, objects) in rendered() {
        for image in Installation::new(objects).images() {
            let (_, tag) = image.split_once(':').unwrap_or_default();
            assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{image} in {name}");
        }
    }
}

#[test]
fn what_refers_to_another_finds_it() {
    let base = Installation::of_base();
    base.check("base");
    for (overlay, objects) in rendered() {
        Installation::new(objects).check(&overlay);
    }
}

/// The restored state lies where the coordinator looks for it, in a claim like its own.
#[test]
fn what_is_restored_is_found() {
    let restore = read(&repository().join("deploy/kubernetes/restore/restore.yaml"));
    let claim = restore.iter().find(|object| object["kind"] == "PersistentVolumeClaim").expect("a claim");
    let base = files::base();
    let coordinator = base.iter().find(|object| object["kind"] == "StatefulSet").expect("a coordinator");
    let template = &coordinator["spec"]["volumeClaimTemplates"][0];
    let names =
        [&template["metadata"]["name"], &coordinator["metadata"]["name"]].map(|name| name.as_str().expect("a name"));
    assert_eq!(claim["metadata"]["name"], format!("{}-{}-0", names[0], names[1]));
    assert_eq!(claim["spec"], template["spec"]);
    let whole = Installation::new(base.into_iter().chain(restore).collect());
    whole.check("restore");
    let state = whole.setting("coordinator", "state").expect("set");
    let told = whole.arguments().into_iter().find(|words| words.get(1).is_some_and(|word| word == "restore"));
    assert!(told.expect("a restore").contains(&state), "the coordinator looks in {state}");
}

#[test]
fn flags_and_settings_are_the_programs() {
    for (file, settings) in files::settings() {
        program::check_settings(&settings).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let installations = rendered().into_iter().chain([("base".to_owned(), files::base())]);
    for (name, objects) in installations {
        for arguments in Installation::new(objects).arguments() {
            program::check_arguments(&arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    for (file, object) in objects() {
        for arguments in Installation::new(vec![object]).arguments() {
            program::check_arguments(&arguments).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }
}

#[test]
fn metrics_are_measured() {
    // Their own tests hold this page to what coordinator and worker measure.
    let page = text(&repository().join("docs/metrics.md"));
    let measured = program::words(&page, "deltaconv_");
    let mut used = 0;
    for file in below(&repository().join("deploy"), "yaml") {
        for metric in program::words(&text(&file), "deltaconv_") {
            assert!(measured.contains(&metric), "{}: {metric} is no metric", file.display());
            used += 1;
        }
    }
    assert!(used > 5, "{used}");
}

#[test]
fn alerts_are_those_of_the_monitoring_set() {
    let rule = read(&repository().join("deploy/kubernetes/components/monitoring/alerts.yaml")).remove(0);
    let rules = read(&repository().join("deploy/monitoring/alerts.yaml")).remove(0);
    assert_eq!(
        rule["spec"], rules,
        "components/monitoring/alerts.yaml is to have what deploy/monitoring/alerts.yaml has"
    );
}

/// The page has all that an installation needs and the repository does not hold.
#[test]
fn the_page_makes_every_secret_that_is_needed() {
    let page = text(&repository().join("docs/kubernetes.md")).replace("\\\n", " ");
    let mut needed = BTreeSet::new();
    for (_, objects) in rendered().into_iter().chain([("base".to_owned(), files::base())]) {
        needed.extend(Installation::new(objects).secrets());
    }
    for (secret, key) in needed {
        let commands = page.lines().filter(|line| line.contains("create secret generic"));
        let mut makes = commands.filter(|line| line.split(' ').any(|word| word == secret));
        let holds = |line: &str| key.as_ref().is_none_or(|key| line.contains(&format!("={key}=")));
        assert!(makes.any(holds), "docs/kubernetes.md does not make {key:?} of the secret {secret}");
    }
    for path in program::words_with(&page, "deploy/kubernetes", "/-._") {
        let path = path.trim_end_matches(['.', '/']);
        assert!(repository().join(path).exists(), "docs/kubernetes.md: nothing is at {path}");
    }
}
