//! Which names and which service a container is to have, by its labels and by what Docker calls it.

use mesh_model::{EndpointUpdate, Labels, Name};
use std::collections::BTreeMap;

/// What a container's endpoints are told of it; or which label can't be followed.
pub(super) fn identity(
    container: &str,
    labels: &BTreeMap<String, String>,
    network_aliases: &[String],
) -> Result<EndpointUpdate, String> {
    let Labels { service, name, mut aliases, weight } = Labels::read(labels)?;
    // What Docker calls it need not be a name here: it may be longer.
    for alias in network_aliases.iter().filter_map(|alias| alias.parse::<Name>().ok()) {
        if !aliases.iter().any(|known| known.same(&alias)) {
            aliases.push(alias);
        }
    }
    let preferred_name = container.trim_start_matches('/').parse().ok();
    let aliases = Some(aliases);
    Ok(EndpointUpdate { service, name, preferred_name, aliases, weight, ..EndpointUpdate::default() })
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
    fn a_container_whose_name_is_too_long_has_none() {
        assert_eq!(identity(&"x".repeat(80), &labels(&[]), &[]).unwrap().preferred_name, None);
    }
}
