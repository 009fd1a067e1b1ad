//! The files of a tokenizer's folder.

use bytes::Bytes;
use deltaconv_proto::Brief;
use deltaconv_proto::objects::{self, Objects};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Error;

/// CLIP's vocabulary has 1 MB, T5's model 0.8 MB. What is made of one takes many times its size.
const MAX_BYTES: u64 = 16 << 20;

/// A tokenizer's folder in a model's.
pub(crate) struct Files<'a> {
    pub(crate) model: &'a Objects,
    pub(crate) folder: &'static str,
}

impl Files<'_> {
    pub(super) async fn bytes(&self, file: &str) -> Result<Bytes, Error> {
        self.model.get(&format!("{}/{file}", self.folder), MAX_BYTES).await.map_err(|error| match error {
            objects::Error::NotFound { .. } => {
                wrong(self, file, "the tokenizer needs it; copy it from the model that this one comes from".to_owned())
            }
            other => other.into(),
        })
    }

    pub(super) async fn text(&self, file: &str) -> Result<String, Error> {
        let bytes = self.bytes(file).await?;
        String::from_utf8(bytes.to_vec()).map_err(|e| wrong(self, file, format!("it is no text in UTF-8 ({e})")))
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T, Error> {
        let bytes = self.bytes(file).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| wrong(self, file, format!("it is not what transformers writes ({e})")))
    }

    /// `None` where the file is not there.
    pub(super) async fn optional_json(&self, file: &str) -> Result<Option<Value>, Error> {
        match self.model.size(&format!("{}/{file}", self.folder)).await {
            Ok(_) => Ok(Some(self.json(file).await?)),
            Err(objects::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) fn wrong(files: &Files<'_>, file: &str, reason: String) -> Error {
    let reason = Brief(reason.as_str()).to_string();
    Error::Unexpected { what: format!("{}/{}/{file}", files.model.url(), files.folder), reason }
}

pub(super) fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A token that a file names by its role, as a string or as an object.
pub(super) fn named_token(map: &Map<String, Value>, role: &str) -> Option<String> {
    let token = map.get(role)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}
