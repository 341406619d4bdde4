//! Which names and which service a container is to have, by its labels and by what Docker calls it.

use mesh_model::{EndpointUpdate, Name};
use std::collections::BTreeMap;

/// The service that the container is a replica of.
const SERVICE: &str = "mesh.service";
/// The endpoint's name; the container's unless given.
const NAME: &str = "mesh.name";
/// More names, separated by commas.
const ALIASES: &str = "mesh.aliases";

/// What a container's endpoints are told of it; or which label can't be followed.
pub(super) fn identity(
    container: &str,
    labels: &BTreeMap<String, String>,
    network_aliases: &[String],
) -> Result<EndpointUpdate, String> {
    let label = |key: &str| labels.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
    let name = label(NAME).map(str::parse).transpose().map_err(|e| format!("label {NAME}: {e}"))?;
    let mut aliases: Vec<Name> = Vec::new();
    for alias in
        label(ALIASES).unwrap_or_default().split(',').map(str::trim).filter(|alias| !alias.is_empty())
    {
        aliases.push(alias.parse().map_err(|e| format!("label {ALIASES}: {e}"))?);
    }
    // What Docker calls it need not be a name here: it may be longer.
    for alias in network_aliases.iter().filter_map(|alias| alias.parse::<Name>().ok()) {
        if !aliases.iter().any(|known| known.same(&alias)) {
            aliases.push(alias);
        }
    }
    let service = label(SERVICE).map(str::to_owned);
    let preferred_name = container.trim_start_matches('/').parse().ok();
    Ok(EndpointUpdate { service, name, preferred_name, aliases: Some(aliases), ..EndpointUpdate::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_and_aliases_become_names() {
        let labels = labels(&[("mesh.service", "web"), ("mesh.aliases", "a, b"), ("other", "x")]);
        let found = identity("/web1", &labels, &["B".into(), "c".into(), "no name".into()]).unwrap();
        assert_eq!(found.service.as_deref(), Some("web"));
        assert_eq!((found.name, found.preferred_name), (None, Some("web1".parse().unwrap())));
        let aliases: Vec<String> = found.aliases.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(aliases, ["a", "b", "c"]);
    }

    #[test]
    fn a_label_that_is_no_name_is_told() {
        let error = identity("c", &labels(&[("mesh.name", "a b")]), &[]).unwrap_err();
        assert!(error.starts_with("label mesh.name: 'a b' is no valid name"), "{error}");
        assert_eq!(identity(&"x".repeat(80), &labels(&[]), &[]).unwrap().preferred_name, None);
    }
}
