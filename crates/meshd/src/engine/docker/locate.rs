//! Containers that are attached by name, `docker:NAME`.

use super::{Api, driver::owned};
use crate::api::Failure;
use mesh_model::{Container, Endpoint, EndpointSpec, Target};
use mesh_net::netns::TargetNamespace;

/// Finds the container of a specification, and a name for its interface unless one is given.
pub(crate) async fn locate(api: &Api, mut spec: EndpointSpec) -> Result<EndpointSpec, Failure> {
    let Target::Docker(Container { name, .. }) = &spec.target else { return Ok(spec) };
    let container = api.inspect(name).await?;
    if !container.state.running {
        return Err(Failure::conflict(format!(
            "container '{name}' does not run: 'docker start' comes first"
        )));
    }
    let netns = match container.network_settings.sandbox_key.as_str() {
        // It shares another container's network.
        "" => format!("/proc/{}/ns/net", container.state.pid),
        path => path.to_owned(),
    };
    let name = container.name.trim_start_matches('/').to_owned();
    spec.preferred_name = spec.preferred_name.or_else(|| name.parse().ok());
    spec.target = Target::Docker(Container { name, netns: Some(netns.into()) });
    if spec.ifname.is_empty() {
        let target = spec.target.clone();
        let free =
            tokio::task::spawn_blocking(move || TargetNamespace::open(&target)?.free_name("eth")).await;
        let free = free.map_err(|e| Failure::internal(e.to_string()))?;
        spec.ifname = free.map_err(|e| Failure::bad_request(e.to_string()))?;
    }
    Ok(spec)
}

/// Has Docker take a container off a network that Docker put it on; whether it did.
pub(crate) async fn detach(api: &Api, endpoint: &Endpoint) -> Result<bool, Failure> {
    let (true, Target::Docker(container)) = (endpoint.is_dockers(), &endpoint.target) else {
        return Ok(false);
    };
    let Some((network, _)) = owned(endpoint) else { return Ok(false) };
    match api.disconnect(network, &container.name).await {
        Ok(()) => Ok(true),
        // Docker knows nothing of it: only the record is left.
        Err(failure) if failure.is_not_found() => Ok(false),
        Err(failure) => Err(failure),
    }
}
