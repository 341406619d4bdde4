//! The targets of this node's endpoints: whether they are there, and whose default route leads out of each.

use crate::{
    desired::Attachment,
    error::{Error, Result},
    kernel::Kernel,
    netlink::read_defaults,
    netns::TargetNamespace,
    object::{Ifname, Space},
};
use mesh_model::{Endpoint, EndpointId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// An endpoint and the routes that were decided for it.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) routes: Attachment,
}

impl Attached {
    /// Those of the endpoint's addresses whose answers would go elsewhere.
    pub(crate) fn source_nat(&self) -> (EndpointId, Vec<IpAddr>) {
        let is_elsewhere = |address: &&IpAddr| self.routes.is_elsewhere(address.is_ipv6());
        (self.endpoint.id, self.endpoint.addresses.iter().filter(is_elsewhere).copied().collect())
    }
}

/// The namespace that an endpoint's record means. Another one at the same path means that the target is gone.
pub(crate) fn check(endpoint: &Endpoint) -> Result<TargetNamespace> {
    let namespace = TargetNamespace::open(&endpoint.target)?;
    // 0: the record was written by somebody who did not look.
    if endpoint.namespace_inode != 0 && endpoint.namespace_inode != namespace.inode() {
        let path = endpoint.target.namespace_path();
        return Err(Error::TargetGone { target: endpoint.target.to_string(), path });
    }
    if Ifname::new(&endpoint.ifname).is_none() {
        return Err(Error::BadIfname(endpoint.ifname.clone()));
    }
    Ok(namespace)
}

/// Whether the namespace that an endpoint's record means is gone.
pub fn has_vanished(endpoint: &Endpoint) -> bool {
    check(endpoint).is_err_and(|error| says_vanished(&error))
}

/// The same of an error of [`check`]; all others say only that it could not be looked at now.
pub(crate) fn says_vanished(error: &Error) -> bool {
    matches!(error, Error::TargetGone { .. } | Error::NotANamespace { .. })
}

/// Makes an endpoint's target usable, until it is closed.
pub(crate) fn open(kernel: &mut Kernel, endpoint: &Endpoint) -> Result<()> {
    let namespace = check(endpoint)?;
    kernel.open_target(endpoint.id, namespace)
}

/// What is said of an endpoint whose target is there, but can't be looked at.
pub(crate) fn unread(endpoint: &Endpoint, error: &Error) -> Error {
    Error::TargetUnread { target: endpoint.target.to_string(), why: error.to_string() }
}

/// Decides for the endpoints of one target which of them has the default route: the one that has it, else the first,
/// unless there is one of somebody else, or Docker makes it. Internal networks lead nowhere. What was decided stays while
/// the group does.
pub(crate) fn decide_routes(
    kernel: &mut Kernel,
    group: &[&Arc<Endpoint>],
    snapshot: &Snapshot,
    known: &BTreeMap<EndpointId, Attached>,
) -> Result<Vec<Attached>> {
    let unchanged: Option<Vec<Attached>> =
        group.iter().map(|endpoint| known.get(&endpoint.id).cloned()).collect();
    if let Some(unchanged) = unchanged {
        return Ok(unchanged);
    }
    let Some(first) = group.first() else { return Ok(Vec::new()) };
    open(kernel, first)?;
    let defaults = kernel.netlink(Space::Target(first.id)).and_then(read_defaults);
    kernel.close_target(first.id);
    let defaults = defaults?;

    let has_one = |endpoint: &Endpoint| {
        defaults.iter().any(|route| route.ours && route.link.as_str() == endpoint.ifname)
    };
    let of_group = |link: &Ifname| group.iter().any(|endpoint| endpoint.ifname == link.as_str());
    let foreign = defaults.iter().filter(|route| !route.ours || !of_group(&route.link));
    let mut taken: BTreeSet<bool> = foreign.map(|route| route.ipv6).collect();
    if group.iter().any(|endpoint| endpoint.is_dockers()) {
        // It may be about to, and would fail where there is one already.
        taken.extend([false, true]);
    }
    let mut order: Vec<&Arc<Endpoint>> = group.to_vec();
    order.sort_by_key(|endpoint| (!has_one(endpoint), endpoint.id));
    let mut decide = |endpoint: &Arc<Endpoint>| {
        let leads_out = snapshot.networks.get(&endpoint.network).is_some_and(|network| !network.internal);
        let mut take = |ipv6: bool| {
            let has_family = endpoint.addresses.iter().any(|address| address.is_ipv6() == ipv6);
            leads_out && has_family && taken.insert(ipv6)
        };
        let (default_ipv4, default_ipv6) = (take(false), take(true));
        let is_elsewhere = |has_default: bool, ipv6: bool| {
            let mut others = defaults.iter().filter(|route| route.ipv6 == ipv6 && !route.ours).peekable();
            // Docker makes the route itself, a moment after the interface is there.
            let may_come = endpoint.is_dockers() && leads_out && others.peek().is_none();
            !has_default && !may_come && !others.any(|route| route.link.as_str() == endpoint.ifname)
        };
        let routes = Attachment {
            default_ipv4,
            default_ipv6,
            elsewhere_ipv4: is_elsewhere(default_ipv4, false),
            elsewhere_ipv6: is_elsewhere(default_ipv6, true),
        };
        Attached { endpoint: endpoint.clone(), routes }
    };
    Ok(order.into_iter().map(&mut decide).collect())
}
