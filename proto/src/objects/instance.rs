//! S3's credentials from the instance that this runs on, which is where they are looked for where nothing gives any.
//!
//! On any other machine that ends in a message about the metadata service, after as many attempts as for a store; here it ends
//! sooner, and says how to give credentials.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key, AwsCredential, AwsCredentialProvider};
use object_store::{CredentialProvider, Error, Result, RetryConfig};

use super::environment::Environment;
use super::retry::Policy;

/// Of a request to the metadata service, which is as near as the network card.
const RETRIES: usize = 2;

#[derive(Debug)]
struct Instance {
    /// None where the environment says that there is none.
    metadata: Option<AwsCredentialProvider>,
}

/// The same builder; where it has no credentials, with the instance's.
pub(super) fn or_instance(
    builder: AmazonS3Builder,
    environment: &Environment,
    policy: &Policy,
) -> Result<AmazonS3Builder> {
    let given = [
        Key::AccessKeyId,
        Key::SecretAccessKey,
        Key::WebIdentityTokenFile,
        Key::ContainerCredentialsRelativeUri,
        Key::ContainerCredentialsFullUri,
    ];
    if given.iter().any(|key| builder.get_config_value(key).is_some()) {
        return Ok(builder);
    }
    let is_off = environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
    let retries = RetryConfig { max_retries: RETRIES.min(policy.retries), ..policy.requests() };
    let store = builder.clone().with_retry(retries).build()?;
    let metadata = Some(store.credentials().clone()).filter(|_| !is_off);
    Ok(builder.with_credentials(Arc::new(Instance { metadata })))
}

#[async_trait]
impl CredentialProvider for Instance {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>> {
        let reason = match &self.metadata {
            None => "AWS_EC2_METADATA_DISABLED is true".to_owned(),
            Some(metadata) => match metadata.get_credential().await {
                Ok(credential) => return Ok(credential),
                Err(error) => error.to_string(),
            },
        };
        let what = format!(
            "there are no credentials: none in the environment or a profile, and none of this machine ({reason}); set \
             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for what is public"
        );
        Err(Error::Generic { store: "S3", source: what.into() })
    }
}
