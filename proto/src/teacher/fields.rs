//! A JSON object whose every field must be asked for: what is left over at the end is refused.

use serde_json::{Map, Value};

use super::Error;
use crate::brief::Brief;

/// The fields of one diffusers configuration that have not been read yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(json: &[u8]) -> Result<Self, Error> {
        match serde_json::from_slice(&without_non_finite(json))? {
            Value::Object(map) => Ok(Self(map)),
            other => Err(Error::NotAnObject { found: shown(&other) }),
        }
    }

    /// `_class_name`, which stays unread.
    pub(super) fn class(&self) -> Result<String, Error> {
        match self.0.get("_class_name") {
            Some(Value::String(name)) => Ok(Brief(name.as_str()).to_string()),
            Some(other) => Err(invalid("_class_name", other, "a string")),
            None => Err(Error::Invalid {
                field: "_class_name",
                value: "absent".to_owned(),
                expected: "the name of a diffusers class; is this the right config.json?".to_owned(),
            }),
        }
    }

    /// Whether the file has a field that has not been read yet.
    pub(super) fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// The field's value, null included; `None` where the file does not have it.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field)
    }

    /// Fields that have no effect on what we compute, whatever they say.
    pub(super) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.0.remove(*field);
        }
    }

    pub(super) fn bool(&mut self, field: &'static str, default: bool) -> Result<bool, Error> {
        match self.take(field) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(invalid(field, &other, "true or false")),
        }
    }

    /// A finite number.
    pub(super) fn number(&mut self, field: &'static str, default: f64) -> Result<f64, Error> {
        match self.take(field) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(number),
                _ => Err(invalid(field, &value, "a finite number")),
            },
        }
    }

    /// A whole number of `min..=max`.
    pub(super) fn count(
        &mut self,
        field: &'static str,
        default: usize,
        min: usize,
        max: usize,
    ) -> Result<usize, Error> {
        match self.take(field) {
            None => Ok(default),
            Some(value) => count(field, &value, min, max),
        }
    }

    /// A string, or `None` for null.
    pub(super) fn string(&mut self, field: &'static str, default: Option<&str>) -> Result<Option<String>, Error> {
        match self.take(field) {
            None => Ok(default.map(str::to_owned)),
            Some(Value::Null) => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(invalid(field, &other, "a string or null")),
        }
    }

    /// Refuses the field unless it is absent, null, or `harmless`.
    pub(super) fn refuse_unless(
        &mut self,
        field: &'static str,
        harmless: &Value,
        supported: &'static str,
    ) -> Result<(), Error> {
        match self.take(field) {
            Some(value) if !value.is_null() && value != *harmless => {
                Err(Error::Unsupported { field, value: shown(&value), supported })
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever has not been read.
    pub(super) fn finish(self) -> Result<(), Error> {
        match self.0.into_iter().next() {
            Some((field, value)) => {
                Err(Error::UnknownField { field: Brief(field.as_str()).to_string(), value: shown(&value) })
            }
            None => Ok(()),
        }
    }
}

pub(super) fn count(field: &'static str, value: &Value, min: usize, max: usize) -> Result<usize, Error> {
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| invalid(field, value, &format!("a whole number of {min} to {max}")))
}

pub(super) fn invalid(field: &'static str, value: &Value, expected: &str) -> Error {
    Error::Invalid { field, value: shown(value), expected: expected.to_owned() }
}

pub(super) fn shown(value: &Value) -> String {
    Brief(value).to_string()
}

/// Python writes `Infinity`, `-Infinity` and `NaN`, which JSON does not have (DPMSolver's `lambda_min_clipped` is one):
/// outside strings they become null. No field that we honour may be null where it should be a number.
fn without_non_finite(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let mut rest = json;
    let mut in_string = false;
    while let Some((&byte, after)) = rest.split_first() {
        if in_string {
            out.push(byte);
            rest = after;
            if byte == b'\\'
                && let Some((&escaped, after)) = after.split_first()
            {
                out.push(escaped);
                rest = after;
            }
            in_string = byte != b'"';
            continue;
        }
        let literal = [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|literal| rest.starts_with(literal));
        if let Some(literal) = literal {
            out.extend_from_slice(b"null");
            rest = &rest[literal.len()..];
        } else {
            in_string = byte == b'"';
            out.push(byte);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn python_literals_become_null_outside_strings_only() {
        let json = br#"{"a": -Infinity, "b": "NaN \" Infinity", "c": [NaN, Infinity]}"#;
        let expected = br#"{"a": null, "b": "NaN \" Infinity", "c": [null, null]}"#;
        assert_eq!(without_non_finite(json), expected);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Fields::parse(&bytes);
        }
    }
}
