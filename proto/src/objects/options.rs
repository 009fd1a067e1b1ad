//! Stores' options by name.
//!
//! `object_store` passes over variables that it doesn't know, so that a misspelt one has no effect and no message. Here a
//! variable that begins as a store's do and is nearly an option is refused. Others are left alone: the prefixes belong to many
//! tools.

/// A variable that is nearly an option.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment has {name}, which is no option; is it {}? Correct or unset it", near.join(" or "))]
pub(super) struct Misspelt {
    name: String,
    near: Vec<String>,
}

/// More differences than this, and a name is another name.
const MISSPELT: usize = 2;

/// The HTTP client's options, which every store has behind its prefix.
const CLIENT: [&str; 20] = [
    "ALLOW_HTTP",
    "ALLOW_INVALID_CERTIFICATES",
    "CONNECT_TIMEOUT",
    "DEFAULT_CONTENT_TYPE",
    "DISABLE_SYSTEM_CERTIFICATES",
    "HTTP1_ONLY",
    "HTTP2_KEEP_ALIVE_INTERVAL",
    "HTTP2_KEEP_ALIVE_TIMEOUT",
    "HTTP2_KEEP_ALIVE_WHILE_IDLE",
    "HTTP2_MAX_FRAME_SIZE",
    "HTTP2_ONLY",
    "POOL_IDLE_TIMEOUT",
    "POOL_MAX_IDLE_PER_HOST",
    "PROXY_CA_CERTIFICATE",
    "PROXY_EXCLUDES",
    "PROXY_URL",
    "RANDOMIZE_ADDRESSES",
    "READ_TIMEOUT",
    "TIMEOUT",
    "USER_AGENT",
];

/// The variables of one store.
pub(super) struct Options {
    /// What they all begin with.
    pub(super) prefix: &'static str,
    /// The names behind the prefix, without the HTTP client's.
    pub(super) names: &'static [&'static str],
    /// Other tools' names behind the prefix that look misspelt and aren't, by what they begin with.
    pub(super) foreign: &'static [&'static str],
}

/// Of `s3://`.
#[cfg(any(feature = "s3", test))]
pub(super) const S3: Options = Options {
    prefix: "AWS_",
    names: &[
        "ACCESS_KEY_ID",
        "BUCKET",
        "BUCKET_NAME",
        "CHECKSUM_ALGORITHM",
        "CONDITIONAL_PUT",
        "CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "CONTAINER_CREDENTIALS_FULL_URI",
        "CONTAINER_CREDENTIALS_RELATIVE_URI",
        "COPY_IF_NOT_EXISTS",
        "DEFAULT_REGION",
        "DISABLE_BULK_DELETE",
        "DISABLE_TAGGING",
        "ENDPOINT",
        "ENDPOINT_URL",
        "ENDPOINT_URL_S3",
        "ENDPOINT_URL_STS",
        "IMDSV1_FALLBACK",
        "METADATA_ENDPOINT",
        "REGION",
        "REQUEST_PAYER",
        "ROLE_ARN",
        "ROLE_SESSION_NAME",
        "S3_EXPRESS",
        "SECRET_ACCESS_KEY",
        "SERVER_SIDE_ENCRYPTION",
        "SESSION_TOKEN",
        "SKIP_SIGNATURE",
        "SSE_BUCKET_KEY_ENABLED",
        "SSE_CUSTOMER_KEY_BASE64",
        "SSE_KMS_KEY_ID",
        "TOKEN",
        "UNSIGNED_PAYLOAD",
        "VIRTUAL_HOSTED_STYLE_REQUEST",
        "WEB_IDENTITY_TOKEN_FILE",
    ],
    // Of other services, for AWS's own tools.
    foreign: &["ENDPOINT_URL_"],
};

/// Of `gs://`.
#[cfg(any(feature = "gs", test))]
pub(super) const GS: Options = Options {
    prefix: "GOOGLE_",
    names: &[
        "APPLICATION_CREDENTIALS",
        "BASE_URL",
        "BEARER_TOKEN",
        "BUCKET",
        "BUCKET_NAME",
        "SERVICE_ACCOUNT",
        "SERVICE_ACCOUNT_KEY",
        "SERVICE_ACCOUNT_PATH",
        "SKIP_SIGNATURE",
    ],
    foreign: &[],
};

/// Of `az://`.
#[cfg(any(feature = "az", test))]
pub(super) const AZ: Options = Options {
    prefix: "AZURE_",
    names: &[
        "AUTHORITY_HOST",
        "AUTHORITY_ID",
        "CLIENT_ID",
        "CLIENT_SECRET",
        "CONTAINER_NAME",
        "CREDENTIAL_TYPE",
        "DISABLE_TAGGING",
        "ENDPOINT",
        "FABRIC_CLUSTER_IDENTIFIER",
        "FABRIC_SESSION_TOKEN",
        "FABRIC_TOKEN_SERVICE_URL",
        "FABRIC_WORKLOAD_HOST",
        "FEDERATED_TOKEN_FILE",
        "IDENTITY_ENDPOINT",
        "MSI_ENDPOINT",
        "MSI_RESOURCE_ID",
        "OBJECT_ID",
        "SKIP_SIGNATURE",
        "STORAGE_ACCESS_KEY",
        "STORAGE_ACCOUNT_KEY",
        "STORAGE_ACCOUNT_NAME",
        "STORAGE_AUTHORITY_HOST",
        "STORAGE_AUTHORITY_ID",
        "STORAGE_CLIENT_ID",
        "STORAGE_CLIENT_SECRET",
        "STORAGE_ENCRYPTION_KEY",
        "STORAGE_ENDPOINT",
        "STORAGE_MASTER_KEY",
        "STORAGE_SAS_KEY",
        "STORAGE_SAS_TOKEN",
        "STORAGE_TENANT_ID",
        "STORAGE_TOKEN",
        "STORAGE_USE_EMULATOR",
        "TENANT_ID",
        "USE_AZURE_CLI",
        "USE_FABRIC_ENDPOINT",
    ],
    foreign: &[],
};

impl Options {
    fn known(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().chain(&CLIENT).copied()
    }

    pub(super) fn check(&self, variable: &str) -> Result<(), Misspelt> {
        let Some(name) = variable.strip_prefix(self.prefix) else { return Ok(()) };
        if self.known().any(|known| known == name) || self.foreign.iter().any(|foreign| name.starts_with(foreign)) {
            return Ok(());
        }
        let near: Vec<_> = nearest(name, self.known()).iter().map(|near| format!("{}{near}", self.prefix)).collect();
        if near.is_empty() { Ok(()) } else { Err(Misspelt { name: variable.to_owned(), near }) }
    }
}

/// The names that this one could be a misspelling of.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names.filter(|known| distance(name, known) <= MISSPELT).collect()
}

/// How many letters must be added, removed, replaced or swapped with their neighbour to get from one name to the other
/// (Levenshtein's distance, with neighbours swapped).
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = match (i, j) {
                (0, _) | (_, 0) => i + j,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
                    let swapped = i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
                    let swapped = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                    replaced.min(swapped).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
                }
            };
        }
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_an_option_is_refused_by_name_with_what_was_meant() {
        for (options, name, meant) in [
            (&S3, "AWS_ENDPONT", "AWS_ENDPOINT"),
            (&S3, "AWS_ALOW_HTTP", "AWS_ALLOW_HTTP"),
            (&S3, "AWS_REGOIN", "AWS_REGION"),
            (&S3, "AWS_ENDPOINTS_URL", "AWS_ENDPOINT_URL"),
            (&S3, "AWS_VIRTUAL_HOST_STYLE_REQUEST", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
            (&GS, "GOOGLE_BASE_URI", "GOOGLE_BASE_URL"),
            (&AZ, "AZURE_STORAGE_ACOUNT_NAME", "AZURE_STORAGE_ACCOUNT_NAME"),
        ] {
            let error = options.check(name).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains(meant), "{error}");
        }
    }

    #[test]
    fn options_and_what_belongs_to_other_tools_pass() {
        for options in [&S3, &GS, &AZ] {
            for name in options.known() {
                options.check(&format!("{}{name}", options.prefix)).expect(name);
            }
        }
        // From the pages that list the variables of AWS's SDKs, CLI and Lambda, of gcloud's libraries, of Azure's CLI and SDKs.
        for name in "AWS_PROFILE AWS_DEFAULT_PROFILE AWS_CA_BUNDLE AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE AWS_PAGER \
                     AWS_DEFAULT_OUTPUT AWS_EXECUTION_ENV AWS_LAMBDA_FUNCTION_NAME AWS_LAMBDA_RUNTIME_API AWS_MAX_ATTEMPTS \
                     AWS_RETRY_MODE AWS_SDK_UA_APP_ID AWS_STS_REGIONAL_ENDPOINTS AWS_USE_FIPS_ENDPOINT AWS_VAULT \
                     AWS_USE_DUALSTACK_ENDPOINT AWS_EC2_METADATA_DISABLED AWS_EC2_METADATA_SERVICE_ENDPOINT \
                     AWS_EC2_METADATA_V1_DISABLED AWS_IGNORE_CONFIGURED_ENDPOINT_URLS AWS_ENDPOINT_URL_SQS \
                     AWS_ENDPOINT_URL_SSO AWS_ENDPOINT_URL_DYNAMODB AWS_METADATA_SERVICE_TIMEOUT AWS_ACCOUNT_ID \
                     AWS_METADATA_SERVICE_NUM_ATTEMPTS AWS_SECURITY_TOKEN AWS_CLI_AUTO_PROMPT AWS_DATA_PATH \
                     AWS_DEFAULTS_MODE AWS_S3_US_EAST_1_REGIONAL_ENDPOINT AWS_XRAY_DAEMON_ADDRESS AWS_SDK_LOAD_CONFIG \
                     AWS_CREDENTIAL_EXPIRATION AWS_CONTAINER_AUTHORIZATION_TOKEN AWS_REQUEST_CHECKSUM_CALCULATION \
                     AWS_RESPONSE_CHECKSUM_VALIDATION AWS_BEARER_TOKEN_BEDROCK AWS_NODEJS_CONNECTION_REUSE_ENABLED"
            .split_whitespace()
        {
            S3.check(name).expect(name);
        }
        for name in "GOOGLE_CLOUD_PROJECT GOOGLE_API_KEY GOOGLE_CLOUD_QUOTA_PROJECT GOOGLE_GHA_CREDS_PATH \
                     GOOGLE_CLOUD_REGION GOOGLE_CREDENTIALS GOOGLE_PROJECT GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"
            .split_whitespace()
        {
            GS.check(name).expect(name);
        }
        for name in "AZURE_CONFIG_DIR AZURE_SUBSCRIPTION_ID AZURE_STORAGE_CONNECTION_STRING AZURE_STORAGE_ACCOUNT \
                     AZURE_STORAGE_KEY AZURE_STORAGE_AUTH_MODE AZURE_CLIENT_CERTIFICATE_PATH AZURE_USERNAME \
                     AZURE_PASSWORD AZURE_LOG_LEVEL AZURE_DEFAULTS_GROUP AZURE_REGIONAL_AUTHORITY_NAME AZURE_HTTP_USER_AGENT \
                     AZURE_CORE_OUTPUT"
            .split_whitespace()
        {
            AZ.check(name).expect(name);
        }
    }

    #[test]
    fn differences_are_counted() {
        for (from, to, expected) in
            [("", "", 0), ("ab", "", 2), ("ab", "ba", 1), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    /// That the lists are `object_store`'s.
    #[cfg(all(feature = "s3", feature = "gs", feature = "az"))]
    #[test]
    fn object_store_knows_every_option() {
        fn all_parse<K: std::str::FromStr>(options: &Options) {
            for name in options.known() {
                let variable = format!("{}{name}", options.prefix).to_lowercase();
                assert!(variable.parse::<K>().is_ok(), "{variable}");
            }
        }
        all_parse::<object_store::aws::AmazonS3ConfigKey>(&S3);
        all_parse::<object_store::gcp::GoogleConfigKey>(&GS);
        all_parse::<object_store::azure::AzureConfigKey>(&AZ);
    }
}
