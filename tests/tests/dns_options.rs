//! What `meshd`'s options for names do: whom it asks, how, and where it answers its host.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::host::binary;
use mesh_tests::{CONVERGES, Cluster, Container, Host, Lab, scenario, within};

const GATEWAY: &str = "192.168.100.1";
/// How many names are asked for.
const ASKED: usize = 20;

/// How long an answer takes at least, as on any network: another upstream can be asked meanwhile, if it is to be.
const TAKES: Duration = Duration::from_millis(20);

/// A machine on the LAN that says one address of every name, and notes the names as they come.
struct Upstream {
    address: Ipv4Addr,
    heard: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    fn start(lab: &Lab, name: &str, port: u16, answer: [u8; 4]) -> Result<Self> {
        let machine = lab.client(name)?;
        let address = machine.ip();
        let socket = machine.inside(|| Ok(UdpSocket::bind((address, port))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (heard, end) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let (noted, ended) = (Arc::clone(&heard), Arc::clone(&end));
        let thread = thread::spawn(move || {
            let mut datagram = [0; 512];
            while !ended.load(Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut datagram) else { continue };
                let Some((name, end)) = question(&datagram[..len]) else { continue };
                lock(&noted).push(name);
                thread::sleep(TAKES);
                let _ = socket.send_to(&reply(&datagram[..end], answer), from);
            }
        });
        Ok(Self { address, heard, end, thread: Some(thread) })
    }

    /// The names below `example.test` that it has been asked for since the last call, as they were written.
    fn heard(&self) -> Vec<String> {
        let mut heard = std::mem::take(&mut *lock(&self.heard));
        heard.retain(|name| name.to_ascii_lowercase().ends_with(".example.test"));
        heard
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a message's question, and where that ends.
fn question(message: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels.join("."), at + 4));
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + len)?).into_owned());
        at += len;
    }
}

/// One address, to a message up to the end of its question.
fn reply(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut reply = question.to_vec();
    // QR and RA; one question, one answer, nothing else.
    reply[2] |= 0x80;
    reply[3] = 0x80;
    reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend(address);
    reply
}

/// A host whose daemon has other options at each start, and a container that asks.
struct Asking {
    cluster: Cluster,
    container: Container,
    asked: usize,
}

/// Where the options are.
const OPTIONS: &str = "/run/lab/options";

impl Asking {
    fn new(lab: &Lab) -> Result<Self> {
        let host = lab.host("vm1")?;
        fs::write(host.file(OPTIONS), "")?;
        let daemon = host.meshd_under(&["sh", "-c", &format!(r#"exec "$@" $(cat {OPTIONS})"#), "sh"])?;
        let cluster = Cluster::alone(daemon)?;
        host.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
        let container = lab.container("asking")?;
        host.meshctl(&["network", "connect", "blue", &container.target()]).ok()?;
        container.resolver(GATEWAY)?;
        Ok(Self { cluster, container, asked: 0 })
    }

    /// Ends the daemon, and starts it with these. The front process goes on, and is told.
    fn restart(&mut self, options: &str) -> Result<()> {
        fs::write(self.host().file(OPTIONS), options)?;
        self.cluster.daemons[0].terminate()?;
        self.cluster.daemons[0].start()
    }

    fn host(&self) -> &Host {
        self.cluster.vm1()
    }

    /// A name that nobody has asked for yet.
    fn name(&mut self) -> String {
        self.asked += 1;
        format!("number{}.of-many.example.test", self.asked)
    }

    /// Asks for so many names that nobody has asked for yet. Each must be found.
    fn ask(&mut self, count: usize) -> Result<Vec<String>> {
        let names: Vec<String> = (0..count).map(|_| self.name()).collect();
        let line: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = self.container.dig(&line)?;
        ensure!(found.len() == names.len(), "{found:?}");
        Ok(names)
    }

    /// Returns when names are asked for in the way that the options say: as these upstreams hear it.
    fn until(&mut self, what: &str, heard: impl Fn() -> bool) -> Result<()> {
        within(CONVERGES, what, || {
            self.ask(1)?;
            within(Duration::from_secs(1), what, || {
                ensure!(heard(), "not yet");
                Ok(())
            })
        })
    }
}

/// How many of so many queries for a name of the mesh, sent at once, are answered.
fn answered(container: &Container, queries: usize) -> Result<usize> {
    let socket = container.inside(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let name = b"\x04none\x04blue\x04mesh\x08internal\x00\x00\x01\x00\x01";
    let query = [&[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name].concat();
    let mut answers = 0;
    for sent in 0..queries {
        socket.send_to(&query, (GATEWAY, 53))?;
        // Its own queue is not to overflow.
        if sent % 50 == 49 {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            while answers <= sent && socket.recv(&mut [0; 512]).is_ok() {
                answers += 1;
            }
        }
    }
    Ok(answers)
}

/// A container gets as many answers as it may, and another all of its own.
#[test]
fn containers_ask_as_often_as_the_limit_says() {
    scenario("limit", |lab| {
        let mut asking = Asking::new(lab)?;
        let other = lab.container("other")?;
        asking.host().meshctl(&["network", "connect", "blue", &other.target()]).ok()?;
        ensure!(answered(&asking.container, 500)? == 500, "nobody is near the usual limit");
        asking.restart("--dns-limit 100")?;
        within(CONVERGES, "the limit holds", || {
            let begun = std::time::Instant::now();
            let answers = answered(&asking.container, 500)?;
            let most = 100 + (begun.elapsed().as_secs_f64() * 100.0) as usize + 1;
            ensure!(answers >= 50 && answers <= most, "{answers} of at most {most}");
            ensure!(answers < 500);
            Ok(())
        })?;
        ensure!(answered(&other, 100)? == 100, "another has a limit of its own");
        asking.restart("--dns-limit 0")?;
        within(CONVERGES, "no limit any more", || {
            ensure!(answered(&asking.container, 500)? == 500);
            Ok(())
        })
    });
}

#[test]
fn resolvers_are_asked_as_the_options_say() {
    scenario("how", |lab| {
        let first = Upstream::start(lab, "first", 53, [192, 0, 2, 1])?;
        let second = Upstream::start(lab, "second", 53, [192, 0, 2, 2])?;
        let given = Upstream::start(lab, "given", 5353, [192, 0, 2, 3])?;
        lab.hosts_resolv_conf(&format!("nameserver {}\nnameserver {}\n", first.address, second.address))?;
        let mut asking = Asking::new(lab)?;
        asking.until("the first is asked", || !first.heard().is_empty())?;

        second.heard();
        let names = asking.ask(ASKED)?;
        // As they were written, and of the first alone, unless that is late on a busy machine.
        ensure!(first.heard() == names);
        let heard = second.heard();
        ensure!(heard.len() < ASKED / 2, "in order, the second was asked for {heard:?}");

        asking.restart("--dns-mode parallel")?;
        asking.until("both are asked", || !second.heard().is_empty())?;
        first.heard();
        asking.ask(ASKED)?;
        for upstream in [&first, &second] {
            let heard = upstream.heard();
            ensure!(heard.len() > ASKED / 2, "at once, {} was asked for {heard:?}", upstream.address);
        }

        let random = |heard: &[String]| heard.iter().all(|name| *name != name.to_ascii_lowercase());
        asking.restart("--dns-0x20")?;
        asking.until("letters are of random case", || {
            let heard = first.heard();
            !heard.is_empty() && random(&heard)
        })?;
        second.heard();
        let names = asking.ask(ASKED)?;
        let heard = first.heard();
        let lower: Vec<String> = heard.iter().map(|name| name.to_ascii_lowercase()).collect();
        ensure!(lower == names && random(&heard), "{heard:?}");
        ensure!(second.heard().len() < ASKED / 2, "in order again");
        // Another case each time, and who asks gets back what it wrote.
        let patterns: BTreeSet<Vec<bool>> = heard
            .iter()
            .map(|name| name.chars().rev().take(12).map(|c| c.is_ascii_uppercase()).collect())
            .collect();
        ensure!(patterns.len() > ASKED / 2, "{heard:?}");
        let written = asking.name().replace("many", "MaNy");
        let said = asking.container.output(&["dig", "+noall", "+answer", &written]).ok()?;
        ensure!(said.starts_with(&format!("{written}.")), "{said}");

        asking.restart(&format!("--dns-0x20=false --dns-upstream {}:5353", given.address))?;
        asking.until("the given one is asked", || !given.heard().is_empty())?;
        let _before = (first.heard(), second.heard());
        let names = asking.ask(ASKED)?;
        ensure!(given.heard() == names);
        ensure!(first.heard().is_empty() && second.heard().is_empty(), "those of resolv.conf are asked");
        within(CONVERGES, "it is shown", || {
            let shown = asking.host().meshctl(&["-o", "json", "dns", "status"]).json()?;
            let upstreams = shown["upstreams"].as_array().context("no upstreams")?;
            let address = format!("{}:5353", given.address);
            ensure!(upstreams.len() == 1 && upstreams[0]["address"] == address, "{shown}");
            Ok(())
        })
    });
}

/// A line says which value and which option; nothing is started.
#[test]
fn values_that_are_none_are_refused() {
    scenario("refused", |lab| {
        let (host, meshd) = (lab.host("vm1")?, binary("meshd")?);
        for (options, said) in [
            (&["--dns-mode", "both"][..], "error: invalid value 'both' for '--dns-mode <MODE>'"),
            (&["--dns-0x20=maybe"], "error: invalid value 'maybe' for '--dns-0x20[=<BOOL>]'"),
            (&["--dns-upstream", "10.0.0.300"], "'10.0.0.300' is no resolver: write ADDR or ADDR:PORT"),
            (&["--dns-upstream", "dns.example"], "'dns.example' is no resolver: write ADDR or ADDR:PORT"),
            (&["--dns-listen", "fd00::1:53:"], "'fd00::1:53:' is no resolver: write ADDR or ADDR:PORT"),
        ] {
            let outcome = host.output(&[&[meshd.as_str()], options].concat());
            let first = outcome.stderr.lines().next().unwrap_or_default();
            ensure!(outcome.code == Some(2) && first.contains(said), "{options:?}: {outcome:?}");
        }
        let file = "/run/lab/meshd.toml";
        for (text, said) in [
            ("dns-mode = 'both'", "unknown variant `both`"),
            ("dns-0x20 = 'yes'", "invalid type"),
            ("dns-upstream = ['10.0.0.300']", "'10.0.0.300' is no resolver"),
            (
                "dns-listen = ['127.0.0.2']\ndns-upstream = ['127.0.0.2']",
                "is both dns-upstream and dns-listen",
            ),
        ] {
            fs::write(host.file(file), text)?;
            host.output(&[&meshd, "--config", file]).refused(said)?;
        }
        Ok(())
    });
}

/// Whether processes of the host get an answer at this address.
fn answers(host: &Host, server: &[&str]) -> Result<()> {
    for transport in ["+notcp", "+tcp"] {
        let line = [&["dig", "+tries=1", "+time=2", transport], server, &["nothing.mesh.internal"]].concat();
        let said = host.output(&line);
        ensure!(said.stdout.contains("status: NXDOMAIN"), "{said:?}");
    }
    Ok(())
}

/// Of both families; on those that are taken or not there yet as soon as that is otherwise, and the others all the same.
#[test]
fn the_host_is_answered_wherever_it_can_be() {
    scenario("listen", |lab| {
        let host = lab.host("vm1")?;
        let resolver =
            ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--user=root"];
        let options = ["--pid-file=", "--bind-interfaces", "--listen-address=127.0.0.9"];
        let other = host.spawn(&[&resolver[..], &options].concat())?;
        within(CONVERGES, "the other resolver is there", || host.dig(&["@127.0.0.9", "any.test"]).map(drop))?;
        let listen = r#"exec "$@" --dns-listen 127.0.0.9 --dns-listen [fd77::99]:5300 --dns-listen 10.77.0.99 \
            --dns-listen 127.0.0.2 --dns-listen [fd77::11]:5300 --dns-listen ::1"#;
        let cluster = Cluster::alone(host.meshd_under(&["sh", "-c", listen, "sh"])?)?;
        let vm1 = cluster.vm1();
        for server in [&["@127.0.0.2"][..], &["@fd77::11", "-p", "5300"], &["@::1"]] {
            within(CONVERGES, &format!("{server:?} answers"), || answers(vm1, server))?;
        }
        let said = fs::read_to_string(vm1.file(vm1.log_path()))?;
        for problem in [
            "no name server on 127.0.0.9:53: Address already in use",
            "no name server on [fd77::99]:5300: Cannot assign requested address",
            "no name server on 10.77.0.99:53: Cannot assign requested address",
        ] {
            ensure!(said.contains(problem), "`{problem}` is not in {said}");
        }
        vm1.meshctl(&["network", "create", "blue"]).ok()?;
        drop(other);
        vm1.output(&["ip", "address", "add", "10.77.0.99/24", "dev", "eth0"]).ok()?;
        vm1.output(&["ip", "address", "add", "fd77::99/64", "dev", "eth0", "nodad"]).ok()?;
        for server in [&["@127.0.0.9"][..], &["@10.77.0.99"], &["@fd77::99", "-p", "5300"], &["@127.0.0.2"]] {
            within(CONVERGES, &format!("{server:?} answers now"), || answers(vm1, server))?;
        }
        Ok(())
    });
}
