//! Every form of a published port, from everywhere that one may ask from, with strict reverse path filters.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Container, Echo, Host, Lab, Namespace, scenario, within};
use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

/// Where replicas say who asks them, over TCP and UDP.
const SAYS: u16 = 7000;

/// Networks of both families, one of them internal, and a host filter that is strict.
fn cluster(lab: &Lab) -> Result<Cluster> {
    let cluster = Cluster::three(lab)?;
    for daemon in &cluster.daemons {
        daemon.host().output(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"]).ok()?;
    }
    for (name, number, options) in
        [("blue", 100, &[][..]), ("red", 101, &[]), ("inner", 102, &["--internal"])]
    {
        let subnets = [format!("192.168.{number}.0/24"), format!("fd00:{number}::/64")];
        let subnets = ["--subnet", &*subnets[0], "--subnet", &*subnets[1]];
        cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], options, &[name]].concat()).ok()?;
    }
    Ok(cluster)
}

/// A container on a network, of a service or none.
fn container(lab: &Lab, host: &Host, name: &str, network: &str, service: Option<&str>) -> Result<Container> {
    let container = lab.container(name)?;
    let service = service.map_or(Vec::new(), |service| vec!["--service", service]);
    let target = container.target();
    let connect = [&["network", "connect", "--name", name], &service[..], &[network, &target]].concat();
    host.meshctl(&connect).ok()?;
    Ok(container)
}

/// A server that tells each client its address.
fn says_who_asks(container: &Container) -> Result<()> {
    let (tcp, udp) =
        container.inside(|| Ok((TcpListener::bind(("::", SAYS))?, UdpSocket::bind(("::", SAYS))?)))?;
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let from = stream.peer_addr().map(|from| from.ip().to_canonical().to_string());
            let _ = std::io::Write::write_all(&mut &stream, from.unwrap_or_default().as_bytes());
        }
    });
    thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
        }
    });
    Ok(())
}

/// What the service says who asked, over TCP.
fn asked_by_tcp(from: &Namespace, to: SocketAddr) -> Result<IpAddr> {
    let said = from.inside(move || {
        let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(std::io::read_to_string(stream)?)
    });
    said.with_context(|| format!("TCP to {to}"))?.parse().with_context(|| format!("of {to}"))
}

fn asked_by_udp(from: &Namespace, to: SocketAddr) -> Result<IpAddr> {
    let said = from.inside(move || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(b"?", to)?;
        let mut datagram = [0; 64];
        let (read, answered) = socket.recv_from(&mut datagram)?;
        ensure!(answered == to, "{answered} answers for {to}");
        Ok(String::from_utf8_lossy(&datagram[..read]).into_owned())
    });
    said.with_context(|| format!("UDP to {to}"))?.parse().with_context(|| format!("of {to}"))
}

/// Asks both ways until both are answered, from this address if one is given.
fn answers(from: &Namespace, ip: IpAddr, port: u16, as_whom: Option<IpAddr>) -> Result<()> {
    let to = SocketAddr::new(ip, port);
    within(CONVERGES, &format!("{to} from {as_whom:?}"), || {
        for said in [asked_by_tcp(from, to)?, asked_by_udp(from, to)?] {
            ensure!(as_whom.is_none_or(|whom| whom == said), "{to} was asked by {said}");
        }
        Ok(())
    })
}

fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.ip().into(), host.ip6().into()]
}

#[test]
fn everybody_reaches_a_published_port_from_everywhere() {
    scenario("published", |lab| {
        let cluster = cluster(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        let both = ["--publish", "7000:7000", "--publish", "7000:7000/udp"];
        let create = ["service", "create", "--name", "says", "--network", "blue"];
        vm1.meshctl(&[&create[..], &both].concat()).ok()?;
        let replica = container(lab, vm1, "says1", "blue", Some("says"))?;
        says_who_asks(&replica)?;
        cluster.endpoints("says", "1/1")?;

        // From another host, its address kept.
        let client = lab.client("client")?;
        let hosts = [vm1, vm2, vm3];
        for ip in hosts.into_iter().flat_map(addresses) {
            let own = if ip.is_ipv4() { client.ip().into() } else { client.ip6().into() };
            answers(&client, ip, 7000, Some(own))?;
        }
        // An address that is on no interface of the LAN is one of the host's, too.
        vm3.output(&["ip", "address", "add", "203.0.113.5/32", "dev", "lo"]).ok()?;
        client.output(&["ip", "route", "add", "203.0.113.5/32", "via", &vm3.ip().to_string()]).ok()?;
        answers(&client, "203.0.113.5".parse()?, 7000, Some(client.ip().into()))?;
        // Hosts themselves, on all of their own addresses, and each other's.
        for host in hosts {
            let loopback: [IpAddr; 2] = ["127.0.0.1".parse()?, "::1".parse()?];
            for ip in hosts.into_iter().flat_map(addresses).chain(loopback) {
                answers(host, ip, 7000, None)?;
            }
        }
        // Containers of the network, of another one, and the replica itself.
        let beside = container(lab, vm3, "beside", "blue", None)?;
        let other = container(lab, vm3, "other", "red", None)?;
        for from in [&beside, &other, &replica] {
            for ip in hosts.into_iter().flat_map(addresses) {
                answers(from, ip, 7000, None)?;
            }
        }
        // An internal network's containers reach nothing of the host, published or not.
        let inner = container(lab, vm3, "inner1", "inner", None)?;
        for gateway in [["-4", "192.168.102.1"], ["-6", "fd00:102::1"]] {
            inner.output(&["ip", gateway[0], "route", "add", "default", "via", gateway[1]]);
        }
        for ip in addresses(vm3) {
            ensure!(
                asked_by_tcp(&inner, SocketAddr::new(ip, 7000)).is_err(),
                "an internal network has a way out"
            );
        }
        Ok(())
    });
}

#[test]
fn ports_of_ranges_in_host_mode_and_of_one_address() {
    scenario("forms", |lab| {
        let cluster = cluster(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        vm3.output(&["ip", "address", "add", "203.0.113.5/32", "dev", "lo"]).ok()?;
        let publish = [
            // More than have a chain each; and some that lead to other numbers.
            "6990-7010:6990-7010",
            "6990-7010:6990-7010/udp",
            "8000-8001:6999-7000",
            "8000-8001:6999-7000/udp",
            "published=8100,target=7000,mode=host",
            "published=8100,target=7000,mode=host,protocol=udp",
            "203.0.113.5:8200:7000",
            "203.0.113.5:8200:7000/udp",
        ];
        let publish: Vec<&str> = publish.iter().flat_map(|port| ["--publish", port]).collect();
        let create = ["service", "create", "--name", "says", "--network", "blue"];
        vm1.meshctl(&[&create[..], &publish].concat()).ok()?;
        let first = container(lab, vm1, "says1", "blue", Some("says"))?;
        says_who_asks(&first)?;
        Echo::start(&first, 6999)?;
        cluster.endpoints("says", "1/1")?;
        let client = lab.client("client")?;
        client.output(&["ip", "route", "add", "203.0.113.5/32", "via", &vm3.ip().to_string()]).ok()?;
        let closed = |ip: IpAddr, port: u16| {
            within(CONVERGES, &format!("{ip} port {port} is closed"), || {
                let to = SocketAddr::new(ip, port);
                let asked = client.inside(move || {
                    Ok(std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2))
                        .map(drop)
                        .map_err(|e| e.kind()))
                })?;
                ensure!(asked == Err(std::io::ErrorKind::ConnectionRefused), "{asked:?}");
                Ok(())
            })
        };
        for host in [vm1, vm2, vm3] {
            for ip in addresses(host) {
                for port in [7000, 8001] {
                    answers(&client, ip, port, None)?;
                }
                // The other ends of ranges lead to the ports beside.
                for port in [6999, 8000] {
                    let at = SocketAddr::new(ip, port).to_string();
                    within(CONVERGES, &at, || Ok(Echo::talk(&Echo::connect(&client, &at)?)?))?;
                }
                // In host mode, where the replica is; on one address, there.
                if host.name() == "vm1" {
                    answers(&client, ip, 8100, None)?
                } else {
                    closed(ip, 8100)?
                }
                closed(ip, 8200)?;
            }
        }
        answers(&client, "203.0.113.5".parse()?, 8200, Some(client.ip().into()))?;
        // Where a replica comes, its ports of host mode open; where it goes, they close.
        let second = container(lab, vm2, "says2", "blue", Some("says"))?;
        says_who_asks(&second)?;
        Echo::start(&second, 6999)?;
        cluster.endpoints("says", "2/2")?;
        for ip in addresses(vm2) {
            answers(&client, ip, 8100, None)?;
        }
        vm1.meshctl(&["network", "disconnect", "blue", "says1"]).ok()?;
        cluster.endpoints("says", "1/1")?;
        for ip in addresses(vm1) {
            closed(ip, 8100)?;
            answers(&client, ip, 7000, None)?;
        }
        Ok(())
    });
}
