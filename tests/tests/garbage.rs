//! Strangers who send what they like to every port: nobody else notices, and the log stays short.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Background, CONVERGES, Cluster, Host, Load, Meshd, Namespace, Replica, ReplicaSpec, lab::Machine, only,
    scenario, within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::{Rng, RngCore};

/// What each of two strangers holds open at once: more than the managers' port lets in of one, and of all.
const IDLE: usize = 2000;
/// How many it lets in, those that wait in the kernel's queue, and those that it is about to end.
const PLACES: usize = 2048 + 1024 + 100;
/// Each kind of garbage comes so often.
const TIMES: usize = 40;

/// Lines that a person reads: not those for debugging.
fn log(host: &Host) -> Result<Vec<String>> {
    let log = fs::read_to_string(host.file(host.log_path()))?;
    Ok(log.lines().filter(|line| !line.contains("DEBUG")).map(str::to_owned).collect())
}

/// The beginnings of conversations that no port of ours expects.
fn garbage() -> Vec<Vec<u8>> {
    let mut random = vec![0; rand::rng().random_range(1..65536)];
    rand::rng().fill_bytes(&mut random);
    let mut client_hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    client_hello.extend(vec![0; 40]);
    let huge = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 9]].concat();
    let head = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 1 << 18]].concat();
    // A question whose name points to itself; over TCP, a length that never comes.
    let question = [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".as_slice(), &[0xc0, 12, 0, 1, 0, 1]].concat();
    // VXLAN, of a network that may well be there, with half a frame inside.
    let vxlan = [[8, 0, 0, 0, 0, 1, 0, 0].as_slice(), &[0xff; 20]].concat();
    let plain = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    vec![random, client_hello, huge, head, plain, question, vxlan, vec![0xff; 1 << 16]]
}

/// Sends it and reads what comes, for a moment. Being cut off is what is expected.
fn throw(to: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))
        .with_context(|| format!("{to} takes connections"))?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    if stream.write_all(bytes).is_ok() {
        let _ = stream.read(&mut [0; 4096]);
    }
    Ok(())
}

fn throw_all(tcp: &[SocketAddr], udp: &[SocketAddr]) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..TIMES {
        for bytes in garbage() {
            tcp.iter().try_for_each(|to| throw(*to, &bytes))?;
            for to in udp {
                // Refused where nobody listens.
                let _ = socket.send_to(&bytes[..bytes.len().min(65_507)], to);
            }
        }
    }
    Ok(())
}

/// The same to a socket of the host; connections that say nothing stay for a while.
fn throw_locally(host: &Host, socket: &str, times: usize) -> Result<()> {
    let socket = host.file(socket);
    let mut idle = Vec::new();
    for _ in 0..times {
        for bytes in garbage() {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            stream.set_read_timeout(Some(Duration::from_millis(20)))?;
            if stream.write_all(&bytes).is_ok() {
                let _ = stream.read(&mut [0; 4096]);
            }
            idle.push(UnixStream::connect(&socket)?);
        }
    }
    Ok(())
}

/// The only network of a host, as the host itself is in it, and the host's own address there.
fn network_of(host: &Host) -> Result<(Background, Namespace, IpAddr)> {
    let script = format!("exec nsenter --net=$(ls -d {}/netns/*) sleep infinity", host.run_dir());
    let process = host.spawn(&["bash", "-c", &script])?;
    let network = host.of_process("blue", process.pid());
    let address = within(CONVERGES, "it is in the network", || {
        let all = network.shell("ip -brief -4 address show").ok()?;
        let mut addresses = all.split_whitespace().filter_map(|word| word.split('/').next());
        let own = addresses.find(|address| address.starts_with("100.127."));
        Ok(own.with_context(|| format!("no address of the node: {all}"))?.parse()?)
    })?;
    Ok((process, network, address))
}

/// Where probes of other nodes' doctors are answered: from a container nothing gets there, from another node garbage does.
fn throw_at_the_responder(at: &Host, from: &Host, container: &Namespace) -> Result<()> {
    let (_here, _, address) = network_of(at)?;
    let (_there, network, _) = network_of(from)?;
    let responder = SocketAddr::from((address, 7443));
    container.inside(|| throw_all(&[], &[responder]))?;
    network.inside(|| throw_all(&[], &[responder]))?;
    // A moment later it answers all the same.
    let only_blue = ["doctor", "--network", "blue", "--node", at.name()];
    within(CONVERGES, "the doctor finds nothing wrong", || from.meshctl(&only_blue).ok()).map(drop)
}

/// The driver's socket for Docker, and that of the process which has names and ingress.
fn throw_at_inner_sockets(daemon: &Meshd) -> Result<()> {
    let host = daemon.host();
    let plugin = format!("{}/meshd.sock", host.docker_plugins());
    throw_locally(host, &plugin, TIMES)?;
    let activate = ["curl", "-sS", "--unix-socket", &plugin, "--data", "{}", "http://meshd/Plugin.Activate"];
    let said = host.output(&activate).ok()?;
    ensure!(said.contains("NetworkDriver"), "{said}");

    let fronts = daemon.fronts()?;
    let [front] = fronts[..] else { anyhow::bail!("{fronts:?}") };
    let front = format!("{}/front.{front}.sock", host.run_dir());
    // From outside of its PID namespace nobody is taken for its daemon.
    throw_locally(host, &front, 1)
}

/// Connections that say nothing, or half a handshake, and stay: for as long as told as many as can be, the oldest replaced
/// by others.
fn crowd(from: &Machine, to: SocketAddr, full: &AtomicBool, stop: &AtomicBool) -> Result<()> {
    from.inside(|| {
        let mut held = VecDeque::new();
        while !stop.load(Relaxed) {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else { continue };
            if held.len() % 2 == 0 {
                // Ended already, if the port is full.
                let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1]);
            }
            held.push_back(stream);
            if held.len() > IDLE {
                held.pop_front();
                full.store(true, Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    })
}

/// Strangers hold every place that there is for them, from two addresses, and go on to ask for more: an agent finds its
/// own.
fn an_agent_comes_all_the_same(cluster: &mut Cluster, strangers: [&Machine; 2]) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let vm1 = cluster.vm1().clone();
    let to = SocketAddr::from((vm1.ip(), 7443));
    let (full, stop) = ([AtomicBool::new(false), AtomicBool::new(false)], AtomicBool::new(false));
    thread::scope(|scope| {
        let (full, stop) = (&full, &stop);
        let crowds: Vec<_> = strangers
            .into_iter()
            .zip(full)
            .map(|(from, full)| scope.spawn(move || crowd(from, to, full, stop)))
            .collect();
        let seen = (|| {
            within(CONVERGES, "the port is full", || {
                ensure!(full.iter().all(|full| full.load(Relaxed)));
                Ok(())
            })?;
            let count = "ss --no-header --tcp --numeric state established '( sport = :7443 )' | wc --lines";
            let places: usize = vm1.shell(count).ok()?.trim().parse()?;
            ensure!(places < PLACES, "{places} connections");
            cluster.daemons[1].restart()?;
            let vm2 = cluster.vm2();
            within(CONVERGES, "an agent connects", || vm2.meshctl(&["status"]).ok())
        })();
        stop.store(true, Relaxed);
        for crowd in crowds {
            crowd.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        seen.map(drop)
    })
}

#[test]
fn garbage_on_every_port() {
    scenario("garbage", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1().clone();
        fs::create_dir(vm1.file(vm1.docker_plugins()))?;
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
        let others = ["--publish", "published=8080,target=80,protocol=http", "--publish", "81:81/udp"];
        vm1.meshctl(&[&service[..], &others[..]].concat()).ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let replicas = [Replica::start(&vm1, spec("web1"))?, Replica::start(cluster.vm2(), spec("web2"))?];
        let (client, stranger, another) =
            (lab.client("client")?, lab.client("stranger")?, lab.client("another")?);
        cluster.answer_in_turn(&client, 8080, &["web1", "web2"])?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        let container = replicas[0].namespace()?;

        let (lines, before) = (log(&vm1)?.len(), cluster.daemons[0].resident()?);
        let proxy = Load::start(&client, &cluster.urls(8080)[0])?;
        let kernel = Load::start(&client, &cluster.urls(80)[0])?;
        let names = Load::repeat(&container, "dig", "dig +short +time=2 +tries=1 web2")?;
        let at = |port: u16| SocketAddr::from((vm1.ip(), port));
        let (tcp, udp) = ([at(7443), at(8080), at(80)], [at(7443), at(4789), at(53), at(81)]);
        stranger.inside(|| throw_all(&tcp, &udp))?;
        let gateway = SocketAddr::from(([10, 50, 0, 1], 53));
        container.inside(|| throw_all(&[gateway], &[gateway]))?;
        throw_locally(&vm1, &vm1.socket(), TIMES)?;
        vm1.meshctl(&["status"]).ok()?;
        throw_at_the_responder(&vm1, cluster.vm2(), &container)?;
        throw_at_inner_sockets(&cluster.daemons[0])?;

        an_agent_comes_all_the_same(&mut cluster, [&stranger, &another])?;
        let target = lab.container("late")?;
        cluster.vm2().meshctl(&["network", "connect", "--name", "late", "blue", &target.target()]).ok()?;

        [&proxy, &kernel, &names].into_iter().try_for_each(|load| load.go_on(20))?;
        for (load, way) in [(proxy, "through the proxy"), (kernel, "through the kernel")] {
            only(&load.stop()?, &["web1", "web2"]).context(way)?;
        }
        only(&names.stop()?, &[&cluster.address("web2")?])?;
        let of_strangers = |said: &[String]| said.iter().filter(|line| line.contains("strangers")).count();
        within(2 * CONVERGES, "strangers are counted", || {
            // A handshake that broke off while the cluster began may have had the line of this half minute.
            stranger.inside(|| throw(at(7443), b"?"))?;
            ensure!(of_strangers(&log(&vm1)?[lines..]) > 0);
            Ok(())
        })?;
        let said = log(&vm1)?.split_off(lines);
        let counted = of_strangers(&said);
        ensure!((1..=4).contains(&counted), "{counted} lines about strangers in {said:#?}");
        ensure!(said.len() < 30, "{} lines: {said:#?}", said.len());
        let grown = cluster.daemons[0].resident()?.saturating_sub(before);
        ensure!(grown < 150 << 10, "{grown} kB more than before");
        Ok(())
    });
}

/// etcd's own ports: it goes on as it was, and what it says of strangers is counted.
#[test]
fn garbage_on_the_ports_of_etcd() {
    scenario("garbage for etcd", |lab| {
        let cluster = Cluster::managers(lab)?;
        let stranger = lab.client("stranger")?;
        let vm1 = cluster.vm1().clone();
        let lines = log(&vm1)?.len();
        stranger.inside(|| throw_all(&[SocketAddr::from((vm1.ip(), 7445))], &[]))?;
        // Only the host itself reaches the clients' port.
        vm1.inside(|| throw_all(&[SocketAddr::from(([127, 0, 0, 1], 7444))], &[]))?;
        for (number, host) in [cluster.vm1(), cluster.vm2(), cluster.vm3()].into_iter().enumerate() {
            host.meshctl(&["network", "create", &format!("after{number}")]).ok()?;
        }
        let said = log(&vm1)?.split_off(lines);
        let of_strangers = said.iter().filter(|line| line.contains("rejected")).count();
        ensure!(of_strangers > 0, "etcd did not hear them: {said:#?}");
        ensure!(said.len() < 30, "{} lines: {said:#?}", said.len());
        Ok(())
    });
}

/// Who speaks our protocol and gets a request wrong is told so in our form.
#[test]
fn a_wrong_request_is_answered_in_json() {
    scenario("wrong request", |lab| {
        let cluster = Cluster::three(lab)?;
        let socket = cluster.vm1().socket();
        for (path, body, expected) in [
            ("networks", "{", "line 1"),
            ("networks", "{\"nam\": 1}", "nam"),
            ("endpoints/x/drain", "", "x"),
            ("nowhere", "", "nowhere"),
        ] {
            let url = format!("http://meshd/v1/{path}");
            let json = "Content-Type: application/json";
            let line = ["curl", "-sS", "--unix-socket", &socket, "-H", json, "--data", body, &url];
            let answer = cluster.vm1().output(&line).json()?;
            let said = answer["error"].as_str().with_context(|| format!("no error in {answer}"))?;
            ensure!(said.contains(expected), "{path}: {said}");
        }
        Ok(())
    });
}
