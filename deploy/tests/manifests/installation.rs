//! Objects that are applied together, and what each says of others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::files;

/// Objects that are applied together.
pub(crate) struct Installation(Vec<Value>);

/// A pod, as its controller makes it.
struct Pod<'a> {
    /// The controller's kind and name.
    name: String,
    labels: &'a Value,
    spec: &'a Value,
    /// Its controller.
    object: &'a Value,
}

impl<'a> Pod<'a> {
    fn of(object: &'a Value) -> Self {
        let template = &object["spec"]["template"];
        let name = format!("{} {}", said(&object["kind"]), said(&object["metadata"]["name"]));
        Self { name, labels: &template["metadata"]["labels"], spec: &template["spec"], object }
    }
}

impl Installation {
    pub(crate) fn new(objects: Vec<Value>) -> Self {
        Self(objects)
    }

    pub(crate) fn of_base() -> Self {
        Self(files::base())
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    fn has(&self, kind: &str, name: &Value) -> bool {
        self.of_kind(kind).any(|object| object["metadata"]["name"] == *name)
    }

    fn pods(&self) -> Vec<Pod<'_>> {
        let controllers = self.0.iter().filter(|object| !object["spec"]["template"]["spec"].is_null());
        controllers.map(Pod::of).collect()
    }

    /// Of all containers.
    pub(crate) fn images(&self) -> Vec<String> {
        self.containers().map(|container| said(&container["image"])).collect()
    }

    /// Of each container that has some.
    pub(crate) fn arguments(&self) -> Vec<Vec<String>> {
        let with_arguments = self.containers().filter(|container| !container["args"].is_null());
        with_arguments.map(|container| list(&container["args"]).iter().map(said).collect()).collect()
    }

    fn containers(&self) -> impl Iterator<Item = &Value> {
        self.pods().into_iter().flat_map(|pod| list(&pod.spec["containers"]))
    }

    /// The secrets that somebody has to make, and their keys as far as they are named.
    pub(crate) fn secrets(&self) -> BTreeSet<(String, Option<String>)> {
        let made: BTreeSet<String> =
            self.of_kind("Certificate").map(|object| said(&object["spec"]["secretName"])).collect();
        let mut secrets = BTreeSet::new();
        for pod in self.pods() {
            for volume in list(&pod.spec["volumes"]) {
                let whole = &volume["secret"]["secretName"];
                let parts = list(&volume["projected"]["sources"]).iter().map(|source| &source["secret"]["name"]);
                secrets.extend(parts.chain([whole]).filter(|name| !name.is_null()).map(|name| (said(name), None)));
            }
            let sources = list(&pod.spec["containers"]).iter().flat_map(|container| list(&container["envFrom"]));
            secrets.extend(sources.map(|source| (said(&source["secretRef"]["name"]), None)));
        }
        for monitor in self.of_kind("ServiceMonitor") {
            for endpoint in list(&monitor["spec"]["endpoints"]) {
                let tls = &endpoint["tlsConfig"];
                for key in [&tls["ca"]["secret"], &tls["cert"]["secret"], &tls["keySecret"]] {
                    secrets.insert((said(&key["name"]), Some(said(&key["key"]))));
                }
            }
        }
        // A file of settings names the file in the volume, which is the key.
        if let Some(file) = self.setting("worker", "invitation_file") {
            secrets.insert((
                "deltaconv-invitation".to_owned(),
                Some(file.rsplit('/').next().unwrap_or_default().to_owned()),
            ));
        }
        secrets.into_iter().filter(|(name, _)| !made.contains(name)).collect()
    }

    /// What the ConfigMap of a command says of one of its settings.
    pub(crate) fn setting(&self, command: &str, key: &str) -> Option<String> {
        let pod = self.pods().into_iter().find(|pod| list(&pod.spec["containers"])[0]["args"][0] == command)?;
        let map = list(&pod.spec["volumes"]).iter().find(|volume| !volume["configMap"].is_null())?;
        let map = self.of_kind("ConfigMap").find(|object| object["metadata"]["name"] == map["configMap"]["name"])?;
        let settings: toml::Table = map["data"]["config.toml"].as_str()?.parse().expect("TOML");
        let value = settings.get(command)?.get(key)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Holds every object to what it says of others.
    pub(crate) fn check(&self, name: &str) {
        assert!(!self.pods().is_empty(), "{name} has no pods");
        self.check_pods(name);
        self.check_services(name);
        self.check_policies(name);
        self.check_monitors(name);
        self.check_scalers(name);
        self.check_certificates(name);
        self.check_coordinator(name);
        self.check_worker(name);
    }

    fn check_pods(&self, name: &str) {
        for pod in self.pods() {
            let at = format!("{name}, {}", pod.name);
            let account = &pod.spec["serviceAccountName"];
            assert!(account.is_null() || self.has("ServiceAccount", account), "{at}: no account {account}");
            let class = &pod.spec["priorityClassName"];
            assert!(class.is_null() || self.has("PriorityClass", class), "{at}: no priority class {class}");
            let selector = &pod.object["spec"]["selector"]["matchLabels"];
            assert!(selects(selector, pod.labels), "{at}: {selector} does not select its own pods");
            let claimed =
                list(&pod.object["spec"]["volumeClaimTemplates"]).iter().map(|claim| said(&claim["metadata"]["name"]));
            let mut volumes: BTreeSet<String> = claimed.collect();
            for volume in list(&pod.spec["volumes"]) {
                let map = &volume["configMap"]["name"];
                assert!(map.is_null() || self.has("ConfigMap", map), "{at}: no ConfigMap {map}");
                let claim = &volume["persistentVolumeClaim"]["claimName"];
                assert!(claim.is_null() || self.has("PersistentVolumeClaim", claim), "{at}: no claim {claim}");
                assert!(volumes.insert(said(&volume["name"])), "{at}: two volumes {}", volume["name"]);
            }
            check_security(&at, pod.spec);
            for container in list(&pod.spec["containers"]) {
                let mounts = list(&container["volumeMounts"]);
                let mounted: BTreeSet<String> = mounts.iter().map(|mount| said(&mount["name"])).collect();
                assert_eq!(volumes, mounted, "{at}: volumes, and those that are mounted");
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let port = &container[probe]["httpGet"]["port"];
                    assert!(port.is_null() || port_of(container, port).is_some(), "{at}: {probe} asks no port {port}");
                }
            }
        }
    }

    fn check_services(&self, name: &str) {
        for service in self.of_kind("Service") {
            let pods = self.pods();
            let selected: Vec<&Pod> =
                pods.iter().filter(|pod| selects(&service["spec"]["selector"], pod.labels)).collect();
            assert!(!selected.is_empty(), "{name}: {} selects nothing", service["metadata"]["name"]);
            for port in list(&service["spec"]["ports"]) {
                let target = &port["targetPort"];
                let open = |pod: &&Pod| {
                    list(&pod.spec["containers"]).iter().any(|container| port_of(container, target).is_some())
                };
                assert!(selected.iter().all(open), "{name}: no port {target}");
            }
        }
        for pod in self.pods() {
            let service = &pod.object["spec"]["serviceName"];
            assert!(service.is_null() || self.has("Service", service), "{name}: no service {service}");
        }
        for budget in self.of_kind("PodDisruptionBudget") {
            let selector = &budget["spec"]["selector"]["matchLabels"];
            assert!(self.pods().iter().any(|pod| selects(selector, pod.labels)), "{name}: {selector} selects nothing");
        }
    }

    fn check_policies(&self, name: &str) {
        let is_deny = |policy: &Value| {
            let spec = &policy["spec"];
            spec["podSelector"] == serde_json::json!({})
                && spec["ingress"].is_null()
                && spec["egress"].is_null()
                && list(&spec["policyTypes"]).len() == 2
        };
        assert!(self.of_kind("NetworkPolicy").any(is_deny), "{name}: what no policy allows is not denied");
        let pods = self.pods();
        for policy in self.of_kind("NetworkPolicy") {
            let spec = &policy["spec"];
            let at = format!("{name}, policy {}", policy["metadata"]["name"]);
            let selected = |selector: &Value| {
                pods.iter().filter(|pod| selects(&selector["matchLabels"], pod.labels)).collect::<Vec<_>>()
            };
            let own = selected(&spec["podSelector"]);
            assert!(!own.is_empty(), "{at}: selects nothing");
            for rule in list(&spec["ingress"]) {
                assert_open(&at, &own, &rule["ports"]);
            }
            for rule in list(&spec["ingress"]).iter().chain(list(&spec["egress"])) {
                for peer in
                    list(&rule["from"]).iter().chain(list(&rule["to"])).filter(|peer| !peer["podSelector"].is_null())
                {
                    let peers = selected(&peer["podSelector"]);
                    assert!(!peers.is_empty(), "{at}: {peer} selects nothing");
                    if !rule["to"].is_null() {
                        assert_open(&at, &peers, &rule["ports"]);
                    }
                }
            }
        }
    }

    fn check_monitors(&self, name: &str) {
        for monitor in self.of_kind("ServiceMonitor") {
            let selector = &monitor["spec"]["selector"]["matchLabels"];
            let service = self.of_kind("Service").find(|service| selects(selector, &service["metadata"]["labels"]));
            let service = service.unwrap_or_else(|| panic!("{name}: {selector} selects no service"));
            for endpoint in list(&monitor["spec"]["endpoints"]) {
                let has = list(&service["spec"]["ports"]).iter().any(|port| port["name"] == endpoint["port"]);
                assert!(has, "{name}: the service has no port {}", endpoint["port"]);
                let host = said(&endpoint["tlsConfig"]["serverName"]);
                assert_eq!(host, format!("{}.deltaconv.svc", said(&service["metadata"]["name"])), "{name}");
            }
        }
        for monitor in self.of_kind("PodMonitor") {
            let pods = self.pods();
            let selector = &monitor["spec"]["selector"]["matchLabels"];
            let pod = pods
                .iter()
                .find(|pod| selects(selector, pod.labels))
                .unwrap_or_else(|| panic!("{name}: {selector} selects nothing"));
            for endpoint in list(&monitor["spec"]["podMetricsEndpoints"]) {
                let open = list(&pod.spec["containers"])
                    .iter()
                    .any(|container| port_of(container, &endpoint["port"]).is_some());
                assert!(open, "{name}: {} has no port {}", pod.name, endpoint["port"]);
            }
        }
    }

    fn check_scalers(&self, name: &str) {
        for scaler in self.of_kind("ScaledObject") {
            let target = &scaler["spec"]["scaleTargetRef"];
            let scaled =
                self.of_kind(&said(&target["kind"])).find(|object| object["metadata"]["name"] == target["name"]);
            let scaled = scaled.unwrap_or_else(|| panic!("{name}: nothing is {target}"));
            assert_eq!(scaled["apiVersion"], target["apiVersion"], "{name}");
            assert!(
                scaled["spec"]["replicas"].is_null(),
                "{name}: whoever applies it sets back how many workers there are"
            );
            assert!(
                self.of_kind("ServiceMonitor").next().is_some(),
                "{name}: nobody reads the metrics that it is scaled by"
            );
        }
    }

    fn check_certificates(&self, name: &str) {
        for certificate in self.of_kind("Certificate") {
            let issuer = &certificate["spec"]["issuerRef"];
            assert!(self.has(&said(&issuer["kind"]), &issuer["name"]), "{name}: no {issuer}");
        }
    }

    /// What the pod mounts and what the program is told to read are one place.
    fn check_coordinator(&self, name: &str) {
        let pods = self.pods();
        let pod = pods.iter().find(|pod| pod.name == "StatefulSet deltaconv-coordinator").expect("a coordinator");
        assert_eq!(pod.object["spec"]["replicas"], 1, "{name}: one writes the state");
        let container = &pod.spec["containers"][0];
        for setting in ["state", "certs"] {
            assert_mounted(name, container, &self.setting("coordinator", setting).expect("set"));
        }
        let port =
            self.setting("coordinator", "listen").expect("set").rsplit(':').next().and_then(|port| port.parse().ok());
        assert_eq!(port_of(container, &Value::from("coordinator")), port, "{name}");
        for folder in list(&container["volumeMounts"]).iter().filter(|mount| mount["mountPath"] == "/store") {
            let allowed = self.setting("coordinator", "allow_store").expect("set");
            assert!(allowed.contains(&format!("\"file://{}\"", said(&folder["mountPath"]))), "{name}: {allowed}");
        }
    }

    fn check_worker(&self, name: &str) {
        let pods = self.pods();
        let pod = pods.iter().find(|pod| pod.name == "Deployment deltaconv-worker").expect("workers");
        let container = &pod.spec["containers"][0];
        for setting in ["identity", "invitation_file", "disk_cache"] {
            assert_mounted(name, container, &self.setting("worker", setting).expect("set"));
        }
        let port = self.setting("worker", "listen").expect("set").rsplit(':').next().and_then(|port| port.parse().ok());
        assert_eq!(port_of(container, &Value::from("metrics")), port, "{name}");

        let arguments: Vec<String> = list(&container["args"]).iter().map(said).collect();
        let flag = arguments.iter().position(|word| word == "--grace").map(|at| arguments[at + 1].clone());
        let grace = flag.or_else(|| self.setting("worker", "grace")).expect("set");
        let grace: u64 = grace.strip_suffix('s').and_then(|seconds| seconds.parse().ok()).expect("seconds");
        let until_killed = pod.spec["terminationGracePeriodSeconds"].as_u64().expect("set");
        assert!(until_killed >= grace + 5, "{name}: killed after {until_killed} s, with a grace of {grace} s");

        let room = |volume: &&Value| !volume["emptyDir"]["sizeLimit"].is_null();
        for volume in list(&pod.spec["volumes"]).iter().filter(room) {
            let gibibytes = |text: &str, unit: &str| text.trim_end_matches(unit).trim().parse::<u64>().expect("whole");
            let cache = gibibytes(&self.setting("worker", "disk_cache_size").expect("set"), "GiB");
            let limit = gibibytes(&said(&volume["emptyDir"]["sizeLimit"]), "Gi");
            assert!(cache < limit, "{name}: a pod is evicted at {limit} GiB, before its cache has {cache} GiB");
        }
    }
}

/// What the level "restricted" wants of a pod, a root file system that nobody writes to, and no token for the cluster's API.
fn check_security(at: &str, pod: &Value) {
    assert_eq!(pod["automountServiceAccountToken"], false, "{at}");
    let security = &pod["securityContext"];
    assert_eq!(
        (&security["runAsNonRoot"], &security["seccompProfile"]["type"]),
        (&true.into(), &"RuntimeDefault".into()),
        "{at}"
    );
    for container in list(&pod["containers"]) {
        let security = &container["securityContext"];
        let held = ["allowPrivilegeEscalation", "readOnlyRootFilesystem"].map(|field| &security[field]);
        assert_eq!(held, [&Value::from(false), &Value::from(true)], "{at}");
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{at}");
        assert!(!container["resources"]["limits"]["memory"].is_null(), "{at}: no limit of memory");
    }
}

fn assert_mounted(name: &str, container: &Value, path: &str) {
    let mounts = list(&container["volumeMounts"]).iter();
    let within = |mount: &Value| {
        path.strip_prefix(&said(&mount["mountPath"])).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    assert!(mounts.into_iter().any(within), "{name}: nothing is mounted for {path}");
}

/// Each of the ports is one of some pod.
fn assert_open(at: &str, pods: &[&Pod], ports: &Value) {
    for port in list(ports) {
        let open = |pod: &&Pod| {
            list(&pod.spec["containers"]).iter().any(|container| port_of(container, &port["port"]).is_some())
        };
        assert!(pods.iter().any(open), "{at}: nobody has port {}", port["port"]);
    }
}

/// The number of a port, which is given by name or number.
fn port_of(container: &Value, port: &Value) -> Option<u64> {
    let found =
        list(&container["ports"]).iter().find(|found| found["name"] == *port || found["containerPort"] == *port)?;
    found["containerPort"].as_u64()
}

/// Whether labels have all that a selector asks for.
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted: BTreeMap<&String, &Value> = selector.as_object().into_iter().flatten().collect();
    wanted.into_iter().all(|(key, value)| labels[key] == *value)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn said(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
