//! What happens to a thousand queries a second while that which answers them ends, starts, or changes.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use mesh_tests::{
    Asked, Background, CONVERGES, Cluster, Container, Host, Lab, Load, Meshd, Queries, scenario, within,
};
use nix::sys::signal::Signal;

/// Queries a second.
const RATE: u32 = 1000;
const SECOND: usize = RATE as usize;
/// The host's resolvers, in their order.
const UPSTREAMS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// What they say of every name below `example.test`.
const EXAMPLE: &str = "192.0.2.9";
/// How late a forwarded answer may be when a resolver stops.
const LATE: Duration = Duration::from_secs(2);

/// Starts one of the host's resolvers, which knows every name below `example.test`, and itself as `whoami.test`.
fn upstream(lab: &Lab, address: &str) -> Result<Background> {
    let [listen, itself, names] = [
        format!("--listen-address={address}"),
        format!("--address=/whoami.test/{address}"),
        format!("--address=/example.test/{EXAMPLE}"),
    ];
    lab.resolver_with(&["--bind-interfaces", &listen, &itself, &names])
}

/// Both of them, and hosts that know them.
fn upstreams(lab: &Lab) -> Result<[Background; 2]> {
    lab.switch(&format!("ip address add {}/24 dev lan0", UPSTREAMS[1]))?;
    lab.hosts_resolv_conf(&UPSTREAMS.map(|address| format!("nameserver {address}\n")).concat())?;
    Ok([upstream(lab, UPSTREAMS[0])?, upstream(lab, UPSTREAMS[1])?])
}

/// Connects a new container to a network and waits until its name is answered there.
fn connected(lab: &Lab, host: &Host, network: &Network, name: &str, options: &[&str]) -> Result<Container> {
    let container = lab.container(name)?;
    connect(host, network, &container, options)?;
    container.resolver(network.gateway)?;
    Ok(container)
}

fn connect(host: &Host, network: &Network, container: &Container, options: &[&str]) -> Result<()> {
    let (name, target) = (container.name(), container.target());
    let line = [&["network", "connect", "--name", name], options, &[network.name, &target]].concat();
    host.meshctl(&line).ok().map(drop)
}

struct Network {
    name: &'static str,
    subnet: &'static str,
    gateway: &'static str,
}

const BLUE: Network = Network { name: "blue", subnet: "192.168.100.0/24", gateway: "192.168.100.1" };
const GREEN: Network = Network { name: "green", subnet: "192.168.101.0/24", gateway: "192.168.101.1" };

impl Network {
    fn create(&self, host: &Host) -> Result<()> {
        host.meshctl(&["network", "create", "--subnet", self.subnet, self.name]).ok().map(drop)
    }

    fn queries(&self, from: &Container, rate: u32, names: &[&str]) -> Result<Queries> {
        Queries::start(from, self.gateway.parse()?, rate, names)
    }
}

/// A host with the service `web` on blue, of two replicas, and a container that asks.
struct Asking {
    cluster: Cluster,
    _replicas: [Container; 2],
    asking: Container,
    vip: IpAddr,
    upstreams: [Background; 2],
}

/// Names of the mesh, in each of the ways in which they are written.
const OWN: [&str; 4] = ["web", "tasks.web", "WEB.blue", "web1.blue.mesh.internal"];
/// The same, and one of others', of which no two are alike.
const ALL: [&str; 5] = [OWN[0], OWN[1], OWN[2], OWN[3], "n{}.example.test"];

impl Asking {
    fn new(lab: &Lab) -> Result<Self> {
        let upstreams = upstreams(lab)?;
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        BLUE.create(vm1)?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let replica =
            |name, address| connected(lab, vm1, &BLUE, name, &["--service", "web", "--ip", address]);
        let _replicas = [replica("web1", "192.168.100.51")?, replica("web2", "192.168.100.52")?];
        let asking = connected(lab, vm1, &BLUE, "asking", &[])?;
        within(CONVERGES, "the names and the resolvers beyond answer", || {
            ensure!(asking.dig(&["tasks.web"])?.len() == 2);
            ensure!(asking.dig(&["www.example.test"])? == [EXAMPLE]);
            for address in UPSTREAMS {
                ensure!(vm1.dig(&[&format!("@{address}"), "www.example.test"])? == [EXAMPLE]);
            }
            Ok(())
        })?;
        let vip = cluster.vip("web")?.parse()?;
        Ok(Self { cluster, _replicas, asking, vip, upstreams })
    }

    fn daemon(&mut self) -> &mut Meshd {
        &mut self.cluster.daemons[0]
    }

    fn up_to_date(&self) -> Result<()> {
        within(CONVERGES, "the node is up to date", || self.cluster.vm1().meshctl(&["status"]).ok().map(drop))
    }

    fn queries(&self, rate: u32, names: &[&str]) -> Result<Queries> {
        BLUE.queries(&self.asking, rate, names)
    }

    /// The answer is the one there has been all the time.
    fn is_right(&self, asked: &Asked) -> bool {
        let address = |last| IpAddr::from([192, 168, 100, last]);
        match asked.name.as_str() {
            "web" | "WEB.blue" => asked.found(&[self.vip]),
            "tasks.web" => asked.found(&[address(51), address(52)]),
            "web1.blue.mesh.internal" => asked.found(&[address(51)]),
            name => {
                name.ends_with(".example.test")
                    && EXAMPLE.parse().is_ok_and(|example| asked.found(&[example]))
            }
        }
    }
}

/// What happens to a daemon.
type Event = fn(&mut Meshd) -> Result<()>;

/// An event, again and again; no query is lost.
fn none_lost(name: &str, event: Event) {
    scenario(name, |lab| {
        let mut asking = Asking::new(lab)?;
        let queries = asking.queries(RATE, &ALL)?;
        for _ in 0..3 {
            queries.go_on(SECOND)?;
            event(asking.daemon())?;
            asking.up_to_date()?;
        }
        queries.go_on(2 * SECOND)?;
        let tally = queries.stop()?;
        println!("{name}: {tally}");
        tally.all_right(|asked| asking.is_right(asked))?;
        tally.none_lost()
    });
}

#[test]
fn none_is_lost_while_the_daemon_is_stopped_and_starts() {
    none_lost("stopped", |daemon| {
        let status = daemon.terminate()?;
        ensure!(status.code() == Some(0), "meshd ended with {status}");
        daemon.start()
    });
}

#[test]
fn none_is_lost_while_the_daemon_is_killed_and_starts() {
    none_lost("killed", Meshd::restart);
}

#[test]
fn none_is_lost_while_the_daemon_is_upgraded() {
    none_lost("upgraded", |daemon| {
        let before = daemon.fronts()?;
        daemon.upgrade()?;
        within(CONVERGES, "only the new one's front is left", || {
            let after = daemon.fronts()?;
            ensure!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
            Ok(())
        })
    });
}

/// How often it is killed in a row: the pause until another starts grows each time, to 0.8 seconds.
const KILLS: usize = 5;
/// Of names of the mesh, each is answered when it is read; of others', some wait for the resolver beyond.
const IN_HAND: usize = 2;
const FORWARDED: usize = 30;

#[test]
fn a_killed_front_loses_what_it_had_in_hand_and_no_more() {
    scenario("killed front", |lab| {
        let mut asking = Asking::new(lab)?;
        let queries = asking.queries(RATE, &ALL)?;
        let mut kills = Vec::new();
        for _ in 0..KILLS {
            queries.go_on(SECOND)?;
            let [front] = asking.daemon().fronts()?[..] else { anyhow::bail!("not one front") };
            let before = Instant::now();
            asking.cluster.vm1().output(&["kill", "-KILL", &front.to_string()]).ok()?;
            kills.push((before, Instant::now()));
            within(CONVERGES, "another serves", || {
                let fronts = asking.daemon().fronts()?;
                ensure!(fronts.len() == 1 && fronts != [front], "{fronts:?}");
                Ok(())
            })?;
        }
        asking.up_to_date()?;
        queries.go_on(2 * SECOND)?;
        let tally = queries.stop()?;
        tally.all_right(|asked| asking.is_right(asked))?;
        let (others, own): (Vec<_>, Vec<_>) =
            tally.lost().into_iter().partition(|asked| asked.name.ends_with(".example.test"));
        println!("killed front: {tally}; {} of the mesh's own and {} others", own.len(), others.len());
        for (before, after) in kills {
            // In hand were those that had been asked shortly before, at most.
            let by_this = |asked: &&&Asked| asked.at > before - LATE && asked.at < after + LATE;
            let (own, others) = (own.iter().filter(by_this), others.iter().filter(by_this));
            let (own, others) = (own.count(), others.count());
            ensure!(own <= IN_HAND && others <= FORWARDED, "{own} and {others} by one kill; {tally}");
        }
        ensure!(own.len() <= KILLS * IN_HAND && others.len() <= KILLS * FORWARDED, "{tally}");
        Ok(())
    });
}

#[test]
fn none_is_lost_in_a_network_while_another_is_rebuilt() {
    scenario("rebuilt", |lab| {
        let asking = Asking::new(lab)?;
        let vm1 = asking.cluster.vm1();
        let queries = asking.queries(RATE, &ALL)?;
        let namespaces = || vm1.output(&["ls", &format!("{}/netns", vm1.run_dir())]).ok();
        let before = namespaces()?;
        GREEN.create(vm1)?;
        let green = lab.container("green1")?;
        green.resolver(GREEN.gateway)?;
        for round in 1..=4_u8 {
            // Another address each time, so that an answer of the past is told from one of now.
            let address = format!("192.168.101.{}", 50 + round);
            connect(vm1, &GREEN, &green, &["--ip", &address])?;
            within(CONVERGES, "the rebuilt network answers", || {
                ensure!(green.dig(&["green1"])? == [address.as_str()]);
                ensure!(green.dig(&["-x", &address])? == ["green1.green.mesh.internal."]);
                ensure!(green.dig(&["+tcp", "www.example.test"])? == [EXAMPLE]);
                ensure!(green.dig(&["web.blue.mesh.internal"])?.is_empty());
                Ok(())
            })?;
            // Its own are answered as fast, from the moment on.
            let own = GREEN.queries(&green, RATE, &["green1"])?;
            own.go_on(SECOND)?;
            let own = own.stop()?;
            let address = [address.parse()?];
            own.all_right(|asked| asked.found(&address))?;
            own.none_lost().context("in the rebuilt network")?;
            vm1.meshctl(&["network", "disconnect", "green", "green1"]).ok()?;
            within(CONVERGES, "the network is gone from this node", || {
                ensure!(namespaces()? == before, "{}", namespaces()?);
                Ok(())
            })?;
            if round % 2 == 0 {
                vm1.meshctl(&["network", "rm", "green"]).ok()?;
                GREEN.create(vm1)?;
            }
        }
        queries.go_on(SECOND)?;
        let tally = queries.stop()?;
        println!("rebuilt: {tally}");
        tally.all_right(|asked| asking.is_right(asked))?;
        tally.none_lost()
    });
}

/// How often a network is removed from under who asks there, and made again.
const REBUILT: u8 = 3;

#[test]
fn a_network_that_is_made_again_loses_what_is_asked_while_it_is_gone_and_no_more() {
    scenario("made again", |lab| {
        let cluster = Cluster::one(lab)?;
        let vm1 = cluster.vm1();
        GREEN.create(vm1)?;
        let asking = connected(lab, vm1, &GREEN, "asking", &["--ip", "192.168.101.50"])?;
        within(CONVERGES, "its name is known", || {
            ensure!(asking.dig(&["asking"])? == ["192.168.101.50"]);
            Ok(())
        })?;
        let queries = GREEN.queries(&asking, RATE, &["asking", "nobody.mesh.internal"])?;
        let mut gone = Vec::new();
        for _ in 0..REBUILT {
            queries.go_on(SECOND)?;
            let goes = Instant::now();
            vm1.meshctl(&["network", "disconnect", "green", "asking"]).ok()?;
            vm1.meshctl(&["network", "rm", "green"]).ok()?;
            GREEN.create(vm1)?;
            connect(vm1, &GREEN, &asking, &["--ip", "192.168.101.50"])?;
            // Confirmed: whoever asks from now on is answered.
            gone.push((goes, Instant::now()));
        }
        queries.go_on(SECOND)?;
        let tally = queries.stop()?;
        let lost = tally.lost();
        for (goes, back) in &gone {
            let count = lost.iter().filter(|asked| asked.at >= *goes && asked.at <= *back).count();
            println!("made again: gone for {:?}, {count} lost meanwhile", *back - *goes);
        }
        println!("made again: {tally}");
        let meanwhile =
            |asked: &Asked| gone.iter().any(|(goes, back)| asked.at >= *goes && asked.at <= *back);
        let start = tally.asked.first().context("nothing was asked")?.at;
        let others = lost.iter().filter(|asked| !meanwhile(asked));
        let others: Vec<_> = others.map(|asked| (&asked.name, asked.at - start)).collect();
        let times: Vec<_> = gone.iter().map(|(goes, back)| (*goes - start, *back - start)).collect();
        ensure!(others.is_empty(), "{} lost while it was there, gone {times:?}: {others:?}", others.len());
        let address = ["192.168.101.50".parse()?];
        tally.all_right(|asked| {
            let absent = asked.answer.as_ref().is_some_and(|answer| answer.rcode == 3);
            if asked.name == "nobody.mesh.internal" {
                absent
            } else {
                asked.found(&address) || meanwhile(asked) && absent
            }
        })
    });
}

#[test]
fn none_is_lost_while_containers_namespaces_are_deleted() {
    scenario("deleted", |lab| {
        let asking = Asking::new(lab)?;
        let vm1 = asking.cluster.vm1();
        let queries = asking.queries(RATE, &ALL)?;
        for round in 1..=3_u8 {
            let name = format!("doomed{round}");
            let doomed = connected(lab, vm1, &BLUE, &name, &[])?;
            let own = Load::repeat(&doomed, "web", "dig +short +tries=1 +time=1 web")?;
            own.go_on(5)?;
            ensure!(doomed.dig(&["web"])? == [asking.vip.to_string()]);
            // In the middle of its questions: its process has the namespace as long as it lives.
            vm1.output(&["ip", "netns", "delete", &name]).ok()?;
            drop(own);
            within(CONVERGES, "the endpoint is gone", || {
                let left = asking.cluster.list(&["endpoint", "ls"])?;
                ensure!(left.iter().all(|endpoint| endpoint["name"] != name.as_str()), "{left:?}");
                Ok(())
            })?;
            queries.go_on(SECOND)?;
        }
        let tally = queries.stop()?;
        println!("deleted: {tally}");
        tally.all_right(|asked| asking.is_right(asked))?;
        tally.none_lost()
    });
}

/// What of others' names is not answered rightly is told so, and is again within a second after the resolver is back.
#[test]
fn none_is_lost_while_the_only_resolver_is_silent() {
    scenario("only one", |lab| {
        let mut asking = Asking::new(lab)?;
        lab.hosts_resolv_conf(&format!("nameserver {}\n", UPSTREAMS[0]))?;
        asking.upstreams[1].kill()?;
        within(CONVERGES, "the other one is not asked any more", || {
            let shown = asking.cluster.vm1().meshctl(&["dns", "status"]).ok()?;
            ensure!(shown.contains(UPSTREAMS[0]) && !shown.contains(UPSTREAMS[1]), "{shown}");
            Ok(())
        })?;
        let others = asking.queries(RATE, &["n{}.example.test"])?;
        let own = asking.queries(RATE / 5, &OWN)?;
        own.go_on(SECOND / 5)?;
        asking.upstreams[0].signal(Signal::SIGSTOP)?;
        let silent = Instant::now();
        // Longer than anybody waits.
        own.go_on(6 * SECOND / 5)?;
        asking.upstreams[0].resume()?;
        let back = Instant::now();
        own.go_on(3 * SECOND / 5)?;
        let (others, own) = (others.stop()?, own.stop()?);
        let recovered =
            others.asked.iter().filter(|asked| asked.at >= back).find(|asked| asking.is_right(asked));
        let recovered = recovered.and_then(|asked| Some(asked.answer.as_ref()?.at - back));
        println!("only one: others' names: {others}; right again after {recovered:?}; own: {own}");
        own.all_right(|asked| asking.is_right(asked)).context("own names")?;
        own.none_lost().context("own names")?;
        others.none_lost().context("others' names")?;
        let waits = |asked: &Asked| asked.at + LATE >= silent && asked.at <= back + AGREED;
        let failed = |asked: &Asked| asked.answer.as_ref().is_some_and(|answer| answer.rcode == 2);
        others.all_right(|asked| asking.is_right(asked) || waits(asked) && failed(asked))?;
        let late = others.asked.iter().filter(|asked| asked.at > back + AGREED);
        let late = late.filter(|asked| asked.took().is_none_or(|took| took > AGREED + own.slowest())).count();
        ensure!(late == 0, "{late} are late although it is back; {others}");
        ensure!(others.rcodes().get(&2).is_some_and(|count| *count > SECOND), "it was not silent: {others}");
        Ok(())
    });
}

/// Queries over TCP, several under way at once on one connection; a client that is closed connects again.
struct Pipelined {
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Connections>>,
}

#[derive(Debug, Default)]
struct Connections {
    asked: usize,
    answered: usize,
    /// How many had no answer when the connection ended, for each that did.
    lost: Vec<usize>,
}

/// Queries under way on a connection.
const UNDER_WAY: usize = 10;

impl Pipelined {
    fn start(from: &Container) -> Result<Self> {
        let connect = {
            let from = from.clone();
            move || -> Result<TcpStream> {
                let stream = from.inside(|| Ok(TcpStream::connect((BLUE.gateway, 53))?))?;
                stream.set_read_timeout(Some(mesh_tests::queries::PATIENCE))?;
                Ok(stream)
            }
        };
        let (asked, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut seen = Connections::default();
            let mut stream = connect()?;
            let mut under_way = HashSet::new();
            while !stopped.load(Relaxed) || !under_way.is_empty() {
                let fill = if stopped.load(Relaxed) { 0 } else { UNDER_WAY };
                let mut step = || -> Result<()> {
                    while under_way.len() < fill {
                        let id = seen.asked as u16;
                        seen.asked += 1;
                        counted.store(seen.asked, Relaxed);
                        under_way.insert(id);
                        let message = over_tcp(id)?;
                        stream.write_all(&message)?;
                    }
                    let mut len = [0; 2];
                    stream.read_exact(&mut len)?;
                    let mut answer = vec![0; u16::from_be_bytes(len).into()];
                    stream.read_exact(&mut answer)?;
                    let id = u16::from_be_bytes([answer[0], answer[1]]);
                    ensure!(under_way.remove(&id), "an answer to no query");
                    ensure!(answer[3] & 15 == 0 && answer[7] > 0, "not found: {answer:?}");
                    seen.answered += 1;
                    Ok(())
                };
                if let Err(err) = step() {
                    // The connection has ended; anything else is the server's fault.
                    err.downcast_ref::<std::io::Error>()
                        .filter(|io| io.kind() != ErrorKind::WouldBlock)
                        .with_context(|| format!("{err:#}"))?;
                    seen.lost.push(under_way.len());
                    under_way.clear();
                    stream = connect()?;
                }
                thread::sleep(Duration::from_millis(2));
            }
            Ok(seen)
        });
        let pipelined = Self { asked, stop, thread };
        pipelined.go_on(SECOND / 10)?;
        Ok(pipelined)
    }

    /// Lets so many more be asked.
    fn go_on(&self, count: usize) -> Result<()> {
        let from = self.asked.load(Relaxed);
        within(Duration::from_secs(30), "queries go on", || {
            ensure!(self.asked.load(Relaxed) >= from + count);
            ensure!(!self.thread.is_finished(), "the client ended");
            Ok(())
        })
    }

    fn stop(self) -> Result<Connections> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }
}

/// A query for a name of ours or, one of two, of others that nobody has asked for yet.
fn over_tcp(id: u16) -> Result<Vec<u8>> {
    let name = if id.is_multiple_of(2) { "tasks.web.".to_owned() } else { format!("t{id}.example.test.") };
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name)?, RecordType::A));
    let message = message.to_vec()?;
    Ok([&(message.len() as u16).to_be_bytes()[..], &message].concat())
}

/// The daemon goes and comes, and the connection stays; another program takes the place of the one that holds it, and closes
/// it between an answer and a query.
#[test]
fn a_connection_outlives_the_daemon_and_is_closed_once_by_an_upgrade() {
    scenario("connection", |lab| {
        let mut asking = Asking::new(lab)?;
        let client = Pipelined::start(&asking.asking)?;
        for event in [Meshd::restart as Event, |daemon| daemon.terminate().and_then(|_| daemon.start())] {
            client.go_on(SECOND / 5)?;
            event(asking.daemon())?;
            asking.up_to_date()?;
        }
        client.go_on(SECOND / 5)?;
        let seen = client.stop()?;
        println!("connection, daemon restarted: {seen:?}");
        ensure!(seen.lost.is_empty() && seen.answered == seen.asked, "it did not last: {seen:?}");

        let client = Pipelined::start(&asking.asking)?;
        for _ in 0..UPGRADES {
            client.go_on(SECOND / 5)?;
            let before = asking.daemon().fronts()?;
            asking.daemon().upgrade()?;
            within(CONVERGES, "only the new one's front is left", || {
                let after = asking.daemon().fronts()?;
                ensure!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
                Ok(())
            })?;
        }
        client.go_on(SECOND / 5)?;
        let seen = client.stop()?;
        println!("connection, upgraded: {seen:?}");
        // What was not read yet has no answer, and is asked again by whoever asks on a new connection (RFC 7766, 6.2.4).
        ensure!(seen.lost.len() == UPGRADES, "not closed once by each: {seen:?}");
        let lost: usize = seen.lost.iter().sum();
        ensure!(lost <= UPGRADES * UNDER_WAY && seen.answered + lost == seen.asked, "{seen:?}");
        Ok(())
    });
}

const UPGRADES: usize = 3;

/// The first resolver goes, and comes back; what is forwarded is late at most, and nothing of ours is.
fn a_resolver_goes(
    name: &str,
    goes: fn(&mut Background) -> Result<()>,
    returns: fn(&Lab, &mut Background) -> Result<()>,
) {
    scenario(name, |lab| {
        let mut asking = Asking::new(lab)?;
        let others = asking.queries(RATE, &["n{}.example.test"])?;
        let own = asking.queries(RATE / 5, &OWN)?;
        let go_on = |seconds| own.go_on(seconds * SECOND / 5);
        go_on(2)?;
        goes(&mut asking.upstreams[0])?;
        // Longer than a resolver that was silent once is left alone.
        go_on(14)?;
        returns(lab, &mut asking.upstreams[0])?;
        go_on(2)?;
        let (others, own) = (others.stop()?, own.stop()?);
        let late = others.slower_than(Duration::from_millis(500));
        println!("{name}: others' names: {others}, {late} later than half a second; own: {own}");
        own.all_right(|asked| asking.is_right(asked)).context("own names")?;
        own.none_lost().context("own names")?;
        others.all_right(|asked| asking.is_right(asked)).context("others' names")?;
        others.none_lost().context("others' names")?;
        // How long a busy machine makes everybody wait, the own names say.
        let limit = LATE + own.slowest();
        let late = others.slower_than(limit);
        ensure!(late == 0, "{late} later than {limit:?}; {others}");
        Ok(())
    });
}

#[test]
fn none_is_lost_while_a_resolver_is_silent() {
    a_resolver_goes("silent", |upstream| upstream.signal(Signal::SIGSTOP), |_, upstream| upstream.resume());
}

#[test]
fn none_is_lost_while_a_resolver_is_gone() {
    a_resolver_goes("gone", Background::kill, |lab, gone| {
        *gone = upstream(lab, UPSTREAMS[0])?;
        Ok(())
    });
}

#[test]
fn none_is_lost_while_the_host_gets_other_resolvers() {
    scenario("other resolvers", |lab| {
        let mut asking = Asking::new(lab)?;
        let queries = asking.queries(RATE, &ALL)?;
        for (left, used) in [(0, 1), (1, 0)] {
            lab.hosts_resolv_conf(&format!("nameserver {}\n", UPSTREAMS[used]))?;
            within(CONVERGES, "the other one is asked", || {
                ensure!(asking.asking.dig(&["whoami.test"])? == [UPSTREAMS[used]]);
                Ok(())
            })?;
            queries.go_on(SECOND)?;
            asking.upstreams[left].kill()?;
            queries.go_on(SECOND)?;
            asking.upstreams[left] = upstream(lab, UPSTREAMS[left])?;
            within(CONVERGES, "it is back", || {
                ensure!(
                    asking.cluster.vm1().dig(&[&format!("@{}", UPSTREAMS[left]), "whoami.test"])?.len() == 1
                );
                Ok(())
            })?;
        }
        let tally = queries.stop()?;
        println!("other resolvers: {tally}");
        tally.all_right(|asked| asking.is_right(asked))?;
        tally.none_lost()
    });
}

/// When a replica was there: from before it was connected until its removal was confirmed.
struct Stay {
    address: IpAddr,
    from: (Instant, Instant),
    until: Option<(Instant, Instant)>,
}

impl Stay {
    /// An answer of then may have it: it was there, or within the last second.
    fn may(&self, asked: &Asked, came: Instant) -> bool {
        let gone = self.until.is_some_and(|(_, gone)| asked.at > gone + AGREED);
        came >= self.from.0 && !gone
    }

    /// An answer of then must have it: it had been there for a second.
    fn must(&self, asked: &Asked, came: Instant) -> bool {
        let leaves = self.until.is_some_and(|(leaves, _)| came >= leaves);
        asked.at > self.from.1 + AGREED && !leaves
    }
}

/// How long after a change was confirmed the answers may still be those of before.
const AGREED: Duration = Duration::from_secs(1);

/// Replicas of a service on vm1 and vm2 that come and go, as vm3 is told of them.
#[test]
fn every_answer_is_right_while_endpoints_come_and_go() {
    scenario("come and go", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        BLUE.create(vm1)?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let _stays = connected(lab, vm1, &BLUE, "web0", &["--service", "web", "--ip", "192.168.100.50"])?;
        let asking = connected(lab, vm3, &BLUE, "asking", &[])?;
        within(CONVERGES, "the replica is known on vm3", || {
            ensure!(asking.dig(&["tasks.web"])? == ["192.168.100.50"]);
            Ok(())
        })?;
        let vip = cluster.vip("web")?.parse()?;
        let replicas = [lab.container("web1")?, lab.container("web2")?];
        let queries = BLUE.queries(&asking, RATE, &["web", "tasks.web"])?;
        let mut stays = Vec::new();
        for round in 1..=6_u8 {
            for (host, replica) in [vm1, vm2].into_iter().zip(&replicas) {
                // An address of its own each time.
                let address = format!("192.168.100.{}", 60 + stays.len());
                let begun = Instant::now();
                connect(host, &BLUE, replica, &["--service", "web", "--ip", &address])?;
                stays.push(Stay { address: address.parse()?, from: (begun, Instant::now()), until: None });
            }
            // Every other round they stay for long enough that they must be in the answers.
            queries.go_on(if round % 2 == 0 { 2 * SECOND } else { 100 })?;
            let last = stays.len() - replicas.len();
            for ((host, replica), stay) in [vm1, vm2].into_iter().zip(&replicas).zip(&mut stays[last..]) {
                let begun = Instant::now();
                host.meshctl(&["network", "disconnect", "blue", replica.name()]).ok()?;
                stay.until = Some((begun, Instant::now()));
            }
            queries.go_on(if round % 2 == 0 { 2 * SECOND } else { 100 })?;
        }
        let tally = queries.stop()?;
        println!("come and go: {tally}");
        let always = IpAddr::from([192, 168, 100, 50]);
        tally.all_right(|asked| {
            let Some(answer) = asked.answer.as_ref().filter(|answer| answer.rcode == 0) else { return false };
            if asked.name == "web" {
                return asked.found(&[vip]);
            }
            let known = |address: &IpAddr| {
                let stay = stays.iter().find(|stay| stay.address == *address);
                *address == always || stay.is_some_and(|stay| stay.may(asked, answer.at))
            };
            let complete = stays.iter().filter(|stay| stay.must(asked, answer.at));
            answer.addresses.contains(&always)
                && answer.addresses.iter().all(known)
                && complete.into_iter().all(|stay| answer.addresses.contains(&stay.address))
        })?;
        tally.none_lost()
    });
}
