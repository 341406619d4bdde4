//! What a container gets to see: packets judged by another implementation, and a server asked by real clients.

#[path = "dns/conformance.rs"]
mod conformance;
#[path = "dns/dig.rs"]
mod dig;
#[path = "dns/fixture.rs"]
mod fixture;
#[path = "dns/forwarding.rs"]
mod forwarding;
#[path = "dns/names.rs"]
mod names;
#[path = "dns/negative.rs"]
mod negative;
#[path = "dns/packets.rs"]
mod packets;
#[path = "dns/serving.rs"]
mod serving;
#[path = "dns/shares.rs"]
mod shares;
#[path = "dns/staleness.rs"]
mod staleness;
#[path = "dns/swaps.rs"]
mod swaps;
#[path = "dns/tcp.rs"]
mod tcp;
#[path = "dns/upstreams.rs"]
mod upstreams;
#[path = "dns/zone.rs"]
mod zone;
