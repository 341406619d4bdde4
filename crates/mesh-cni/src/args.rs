//! `CNI_ARGS`: pairs for one attachment, separated by semicolons.

use crate::{failure::Failure, request::invalid};

/// What is done something with, or known to mean nothing here.
const KNOWN: [&str; 11] = [
    "IgnoreUnknown",
    "IP",
    "MAC",
    "MESH_SERVICE",
    "MESH_NAME",
    "MESH_ALIASES",
    "MESH_WEIGHT",
    "K8S_POD_NAME",
    "K8S_POD_NAMESPACE",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_UID",
];

/// The pairs, as given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Args(Vec<(String, String)>);

impl Args {
    /// Unknown keys are refused unless `IgnoreUnknown` says otherwise, as by other plugins.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let mut pairs = Vec::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| invalid("CNI_ARGS", &format!("'{pair}' is no KEY=VALUE")))?;
            pairs.push((key.to_owned(), value.to_owned()));
        }
        let args = Self(pairs);
        let lenient = args
            .get("IgnoreUnknown")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "t" | "true"));
        let unknown = args.0.iter().find(|(key, _)| !KNOWN.contains(&key.as_str()));
        match unknown.filter(|_| !lenient) {
            Some((key, _)) => {
                Err(invalid("CNI_ARGS", &format!("'{key}' is not known (IgnoreUnknown=1 lets it pass)")))
            }
            None => Ok(args),
        }
    }

    /// The value of a key, the last one if it is given twice; what is empty is not given.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let last = self.0.iter().rev().find(|(known, _)| known == key);
        last.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_are_read_and_typos_are_not_overlooked() {
        let args = Args::parse("IgnoreUnknown=1;K8S_POD_NAME=web;FOO=BAR;MESH_SERVICE=a=b;;IP=").unwrap();
        assert_eq!(args.get("K8S_POD_NAME"), Some("web"));
        assert_eq!(args.get("MESH_SERVICE"), Some("a=b"));
        assert_eq!(args.get("IP"), None);
        for bad in ["MESH_SERVCE=web", "web", "=x", "IgnoreUnknown=0;FOO=1"] {
            assert!(Args::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_found_again(text in "[A-Z0-9a-z=;_ é]{0,60}") {
            if let Ok(args) = Args::parse(&format!("{text};IgnoreUnknown=true")) {
                for pair in text.split(';').filter(|pair| !pair.is_empty()) {
                    let (key, _) = pair.split_once('=').expect("a pair, else it was refused");
                    prop_assert!(args.0.iter().any(|(known, _)| known == key));
                }
            }
        }
    }
}
