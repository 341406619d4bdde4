//! What a container's labels say of its endpoint, whichever engine runs it.

use crate::{Name, Weight};
use std::{collections::BTreeMap, str::FromStr};

/// The service that the container is a replica of.
pub const SERVICE: &str = "mesh.service";
/// The endpoint's name.
pub const NAME: &str = "mesh.name";
/// More names, separated by commas.
pub const ALIASES: &str = "mesh.aliases";
/// How much of the service's traffic it is to have.
pub const WEIGHT: &str = "mesh.weight";

/// The labels that are meshd's, each as it is there. One that is empty is as one that isn't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `mesh.service`.
    pub service: Option<String>,
    /// `mesh.name`.
    pub name: Option<Name>,
    /// `mesh.aliases`.
    pub aliases: Vec<Name>,
    /// `mesh.weight`.
    pub weight: Option<Weight>,
}

impl Labels {
    /// Reads them; or says which can't be followed, and why.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        let label = |key: &str| labels.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let aliases = label(ALIASES).unwrap_or_default().split(',').map(str::trim);
        let aliases = aliases.filter(|alias| !alias.is_empty());
        Ok(Self {
            service: label(SERVICE).map(str::to_owned),
            name: label(NAME).map(|text| parse(NAME, text)).transpose()?,
            aliases: aliases.map(|text| parse(ALIASES, text)).collect::<Result<_, _>>()?,
            weight: label(WEIGHT).map(|text| parse(WEIGHT, text)).transpose()?,
        })
    }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(label: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|reason| format!("label {label}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Result<Labels, String> {
        Labels::read(&labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_there_is_read_and_what_is_empty_is_not_there() {
        let found =
            read(&[("mesh.service", " web "), ("mesh.aliases", "a, b,"), ("mesh.weight", "3"), ("x", "y")]);
        let expected = Labels {
            service: Some("web".to_owned()),
            name: None,
            aliases: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            weight: Some("3".parse().unwrap()),
        };
        assert_eq!(found.unwrap(), expected);
        assert_eq!(read(&[("mesh.name", ""), ("mesh.weight", " ")]).unwrap(), Labels::default());
    }

    #[test]
    fn a_label_that_can_not_be_followed_is_told() {
        let error = read(&[("mesh.name", "a b")]).unwrap_err();
        assert!(error.starts_with("label mesh.name: 'a b' is no valid name"), "{error}");
        let error = read(&[("mesh.weight", "257")]).unwrap_err();
        assert_eq!(error, "label mesh.weight: '257' is no weight: write a number from 0 to 256");
        assert!(read(&[("mesh.weight", "-1")]).is_err());
    }
}
