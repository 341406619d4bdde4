//! What goes through published ports is counted, by port of the replica and by replica: in sets whose elements have counters.
//! A replica keeps its element as long as it is one, whether it takes connections or not.

use super::{IpVersion, Rules, host::is_counted};
use crate::nft::{Base, ChainKind, CtDirection, Datum, Field, Hook, Rule, Set, Table, Type, ct_status};
use mesh_model::Transport;
use std::net::IpAddr;

/// Connections; what clients sent; what they were sent.
pub(crate) const COUNTED: [&str; 3] = ["connections", "to_replicas", "from_replicas"];

/// The sets, with an element for each replica of each service that is published here, and the rules that look there.
pub(super) fn counters(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let mut set = Set::counted(&[Type::Proto, Type::Port, version.address()]);
    for service in rules.services() {
        let Some(network) = service.ingress_network() else { continue };
        let replicas = rules.replicas.get(&(service.id, network)).map_or(&[][..], Vec::as_slice);
        let published = rules.snapshot.published_on(service, rules.me.id);
        for port in published.filter(|port| is_counted(service, port)) {
            for address in replicas.iter().filter_map(|replica| version.address_of(replica)) {
                set.add(vec![
                    Datum::Proto(port.protocol.transport().number()),
                    Datum::Port(port.target),
                    address,
                ]);
            }
        }
    }
    for name in COUNTED {
        table.set(name, set.clone());
    }
    let [connections, sent, received] = COUNTED;
    let there = [Field::L4proto, Field::ThDport, version.daddr()];
    let back = [Field::L4proto, Field::ThSport, version.saddr()];
    let published = |interface| Rule::new().begins(interface, "up").any_bit(Field::CtStatus, ct_status::DNAT);
    // After the destination was translated, and before the source is: this chain sees the first packet of each connection.
    table.hook(
        "count_connections",
        Base::new(ChainKind::Nat, Hook::Postrouting, 99),
        vec![published(Field::Oifname).is_in(&there, connections)],
    );
    table.hook(
        "count_sent",
        Base::new(ChainKind::Filter, Hook::Postrouting, 99),
        vec![published(Field::Oifname).direction(CtDirection::Original).is_in(&there, sent)],
    );
    // Before the source is what the client asked.
    table.hook(
        "count_received",
        Base::new(ChainKind::Filter, Hook::Prerouting, -150),
        vec![published(Field::Iifname).direction(CtDirection::Reply).is_in(&back, received)],
    );
}

/// The transport, port and address of an element's key, as the kernel has it.
pub(crate) fn key_of(key: &[u8]) -> Option<(Transport, u16, IpAddr)> {
    let (front, address) = (key.get(..8)?, key.get(8..)?);
    let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|known| known.number() == front[0])?;
    let port = u16::from_be_bytes([front[4], front[5]]);
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some((transport, port, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_the_kernel_has_it() {
        let v4 = [6, 0, 0, 0, 0x1f, 0x90, 0, 0, 10, 78, 0, 11];
        assert_eq!(key_of(&v4), Some((Transport::Tcp, 8080, [10, 78, 0, 11].into())));
        let v6 = [&[17, 0, 0, 0, 0, 53, 0, 0][..], &[0xfd; 16]].concat();
        assert_eq!(key_of(&v6), Some((Transport::Udp, 53, [0xfd_u8; 16].into())));
        assert_eq!(key_of(&v4[..11]), None);
    }
}
