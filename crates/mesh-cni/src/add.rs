//! `ADD`: an endpoint is made, and what came of it is looked at.

use crate::{
    config::Config,
    daemon::{Daemon, owner},
    failure::{Code, Failure},
    namespace::{Interface, Namespace},
    request::Attachment,
    result::Made,
    wishes::Wishes,
};
use mesh_api::EndpointView;
use mesh_model::{EndpointSpec, Target};
use serde_json::Value;
use std::path::Path;

/// Makes the attachment and returns its result. What fails on the way is undone.
pub(crate) async fn add(daemon: &Daemon, config: &Config, attachment: &Attachment) -> Result<Value, Failure> {
    // Parsed and opened before anything is made.
    let wishes = Wishes::of(config, &attachment.args)?;
    let netns = attachment.netns.as_deref().unwrap_or(Path::new(""));
    let namespace = Namespace::open(netns)?;
    let spec = EndpointSpec {
        service: wishes.service,
        name: wishes.name,
        preferred_name: wishes.preferred_name,
        addresses: wishes.addresses,
        aliases: wishes.aliases,
        weight: wishes.weight,
        mac: wishes.mac,
        ports: wishes.ports,
        owner: Some(owner(config, attachment)),
        ..EndpointSpec::new(&config.network, Target::Netns(netns.to_owned()), &attachment.ifname)
    };
    let endpoint = match daemon.connect(&spec).await {
        Ok(endpoint) => endpoint,
        // A container that went meanwhile is the better reason.
        Err(failure) => return Err(Namespace::open(netns).err().unwrap_or(failure)),
    };
    let made = looked_at(&namespace, &endpoint).and_then(|interface| {
        Namespace::open(netns)?;
        let made = Made { endpoint: &endpoint, interface: &interface, netns, dns: &config.dns };
        made.result(config.version, config.previous.as_ref())
    });
    if made.is_err() {
        // Should this fail too: the runtime is bound to ask for DEL, and meshd removes it when the namespace goes.
        let _ = daemon.remove(&endpoint, true).await;
    }
    made
}

fn looked_at(namespace: &Namespace, endpoint: &EndpointView) -> Result<Interface, Failure> {
    let missing = || {
        Failure::new(Code::Broken, format!("interface {} vanished as soon as it was made", endpoint.ifname))
    };
    namespace.interface(&endpoint.ifname)?.ok_or_else(missing)
}
