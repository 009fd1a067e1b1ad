//! Kinds that a cluster has by its operators: those fields of their definitions that are of use here. What isn't listed is refused.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use k8s_openapi::api::core::v1::{ConfigMapKeySelector, SecretKeySelector};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};

/// A whole object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Custom<S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
}

/// monitoring.coreos.com/v1
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ServiceMonitorSpec {
    selector: LabelSelector,
    endpoints: Vec<Endpoint>,
    job_label: Option<String>,
    target_labels: Option<Vec<String>>,
    pod_target_labels: Option<Vec<String>>,
    namespace_selector: Option<NamespaceSelector>,
    sample_limit: Option<u64>,
    target_limit: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PodMonitorSpec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
    job_label: Option<String>,
    pod_target_labels: Option<Vec<String>>,
    namespace_selector: Option<NamespaceSelector>,
    sample_limit: Option<u64>,
    target_limit: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct NamespaceSelector {
    any: Option<bool>,
    match_names: Option<Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Endpoint {
    port: Option<String>,
    path: Option<String>,
    scheme: Option<Scheme>,
    params: Option<BTreeMap<String, Vec<String>>>,
    interval: Option<String>,
    scrape_timeout: Option<String>,
    tls_config: Option<SafeTlsConfig>,
    honor_labels: Option<bool>,
    honor_timestamps: Option<bool>,
    follow_redirects: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SafeTlsConfig {
    ca: Option<SecretOrConfigMap>,
    cert: Option<SecretOrConfigMap>,
    key_secret: Option<SecretKeySelector>,
    server_name: Option<String>,
    insecure_skip_verify: Option<bool>,
    min_version: Option<String>,
    max_version: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SecretOrConfigMap {
    secret: Option<SecretKeySelector>,
    config_map: Option<ConfigMapKeySelector>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleSpec {
    groups: Vec<RuleGroup>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
    interval: Option<String>,
    limit: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Rule {
    expr: IntOrString,
    record: Option<String>,
    alert: Option<String>,
    #[serde(rename = "for")]
    hold: Option<String>,
    keep_firing_for: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

/// keda.sh/v1alpha1
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ScaledObjectSpec {
    scale_target_ref: ScaleTarget,
    triggers: Vec<Trigger>,
    polling_interval: Option<i32>,
    initial_cooldown_period: Option<i32>,
    cooldown_period: Option<i32>,
    idle_replica_count: Option<i32>,
    min_replica_count: Option<i32>,
    max_replica_count: Option<i32>,
    advanced: Option<Advanced>,
    fallback: Option<Fallback>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ScaleTarget {
    name: String,
    api_version: Option<String>,
    kind: Option<String>,
    env_source_container_name: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Trigger {
    metadata: BTreeMap<String, String>,
    name: Option<String>,
    use_cached_metrics: Option<bool>,
    authentication_ref: Option<AuthenticationRef>,
    metric_type: Option<MetricType>,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AuthenticationRef {
    name: String,
    kind: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Advanced {
    horizontal_pod_autoscaler_config: Option<AutoscalerConfig>,
    restore_to_original_replica_count: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AutoscalerConfig {
    behavior: Option<HorizontalPodAutoscalerBehavior>,
    name: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Fallback {
    failure_threshold: i32,
    replicas: i32,
    behavior: Option<String>,
}

/// cert-manager.io/v1
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IssuerSpec {
    self_signed: Option<SelfSigned>,
    ca: Option<AuthorityIssuer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SelfSigned {
    crl_distribution_points: Option<Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AuthorityIssuer {
    secret_name: String,
    crl_distribution_points: Option<Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CertificateSpec {
    secret_name: String,
    issuer_ref: IssuerRef,
    common_name: Option<String>,
    dns_names: Option<Vec<String>>,
    ip_addresses: Option<Vec<String>>,
    uris: Option<Vec<String>>,
    duration: Option<String>,
    renew_before: Option<String>,
    usages: Option<Vec<Usage>>,
    #[serde(rename = "isCA")]
    is_ca: Option<bool>,
    private_key: Option<PrivateKey>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IssuerRef {
    name: String,
    kind: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PrivateKey {
    algorithm: Option<String>,
    size: Option<u32>,
    encoding: Option<String>,
    rotation_policy: Option<String>,
}

/// How something is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Http,
    Https,
}

/// What a target is compared with.
#[derive(Debug, Serialize, Deserialize)]
enum MetricType {
    AverageValue,
    Value,
}

/// What a certificate's key may be used for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Usage {
    #[serde(rename = "digital signature")]
    DigitalSignature,
    #[serde(rename = "server auth")]
    ServerAuth,
    #[serde(rename = "client auth")]
    ClientAuth,
    #[serde(rename = "cert sign")]
    CertSign,
}
