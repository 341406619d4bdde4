//! A network's resolvers.

use crate::{DNS_DOMAIN_RESOLVERS, DNS_DOMAINS, DNS_UPSTREAMS, Network, NetworkDns, Refusal, Resolver};

/// What the network has, each resolver once; refused if it is too much, or if the network would ask itself.
pub(super) fn dns(network: &Network) -> Result<NetworkDns, Refusal> {
    let wanted = &network.dns;
    let domains = wanted.domains.iter().map(|(domain, resolvers)| (domain.clone(), once(resolvers)));
    let dns = NetworkDns { upstreams: once(&wanted.upstreams), domains: domains.collect() };
    if dns.upstreams.len() > DNS_UPSTREAMS {
        return Err(Refusal::DnsUpstreams(dns.upstreams.len()));
    }
    if dns.domains.len() > DNS_DOMAINS {
        return Err(Refusal::DnsDomains(dns.domains.len()));
    }
    for (domain, resolvers) in &dns.domains {
        match resolvers.len() {
            0 => return Err(Refusal::DnsDomainEmpty(domain.clone())),
            1..=DNS_DOMAIN_RESOLVERS => {}
            count => return Err(Refusal::DnsDomainResolvers { domain: domain.clone(), count }),
        }
    }
    let is_gateway = |resolver: &Resolver| network.gateways().any(|own| own == resolver.address().ip());
    if let Some(resolver) = dns.resolvers().find(is_gateway) {
        return Err(Refusal::DnsItself { resolver, network: network.name.to_string() });
    }
    Ok(dns)
}

fn once(resolvers: &[Resolver]) -> Vec<Resolver> {
    let mut once = Vec::with_capacity(resolvers.len());
    for resolver in resolvers {
        if !once.contains(resolver) {
            once.push(*resolver);
        }
    }
    once
}
