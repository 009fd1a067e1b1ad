//! The environment's variables, which are where stores' options come from.

use std::collections::BTreeMap;
use std::env;
use std::str::FromStr;

use super::options::{Misspelt, Options};

/// Variables and their values, without those that are empty: to a shell they are there, to every cloud's tools they aren't.
#[derive(Default)]
pub(super) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(super) fn of_process() -> Self {
        env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A store's options, by `object_store`'s keys for them.
    ///
    /// # Errors
    /// [`Misspelt`] for a variable that is nearly an option.
    pub(super) fn options<K: FromStr>(&self, options: &Options) -> Result<Vec<(K, &str)>, Misspelt> {
        let of_store = || self.0.iter().filter(|(name, _)| name.starts_with(options.prefix));
        of_store().try_for_each(|(name, _)| options.check(name))?;
        Ok(of_store().filter_map(|(name, value)| Some((name.to_lowercase().parse().ok()?, value.as_str()))).collect())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        Self(variables.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::S3;
    use super::*;

    #[test]
    fn options_are_found_by_their_key_and_empty_ones_are_none() {
        let variables = [("AWS_ENDPOINT", ""), ("AWS_REGION", "r"), ("AWS_PAGER", "less"), ("HOME", "/root")];
        let environment: Environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(environment.get("AWS_ENDPOINT"), None);
        let options = environment.options::<object_store::aws::AmazonS3ConfigKey>(&S3).expect("known");
        assert_eq!(options, [(object_store::aws::AmazonS3ConfigKey::Region, "r")]);
    }
}
