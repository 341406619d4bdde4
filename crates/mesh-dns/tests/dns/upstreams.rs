//! Upstreams that are slow, lie, ask us in turn, or are others' for other names; each is a socket of the test's, so that it
//! does just what it is told.

use crate::{
    dig::{Running, dig, options, short, unhurried},
    fixture::{Mesh, ip, query},
};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, RecordType},
};
use mesh_dns::{ForwarderOptions, Manner, Order, Routes, Upstream};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
    time::timeout,
};

/// An upstream that notes what it is asked and answers each with one address.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Message>>>,
    pub(crate) silent: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(answer: &str) -> Self {
        Self::with(answer, |_, reply| Some(reply)).await
    }

    /// One that takes so long for each answer.
    pub(crate) async fn slow(answer: &str, takes: Duration) -> Self {
        Self::with(answer, move |_, reply| {
            std::thread::sleep(takes);
            Some(reply)
        })
        .await
    }

    /// `judge` may change its answer to a question, or withhold it.
    pub(crate) async fn with(
        answer: &str,
        judge: impl Fn(&Message, Message) -> Option<Message> + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (asked, silent) = (Arc::<Mutex<Vec<Message>>>::default(), Arc::<AtomicBool>::default());
        let (noted, is_silent, answer) = (asked.clone(), silent.clone(), ip(answer));
        let task = tokio::spawn(async move {
            let mut octets = [0; 4096];
            while let Ok((len, from)) = socket.recv_from(&mut octets).await {
                let question = Message::from_vec(&octets[..len]).unwrap();
                noted.lock().unwrap().push(question.clone());
                let mut reply = question.clone();
                reply.metadata.message_type = MessageType::Response;
                let name = question.queries[0].name().clone();
                let data = match answer {
                    IpAddr::V4(v4) => RData::A(v4.into()),
                    IpAddr::V6(v6) => RData::AAAA(v6.into()),
                };
                reply.add_answer(Record::from_rdata(name, 60, data));
                if let Some(reply) = judge(&question, reply).filter(|_| !is_silent.load(Relaxed)) {
                    socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        Self { address, asked, silent, task }
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Message {
        self.asked.lock().unwrap().last().expect("something was asked").clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn exchange(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut reply = [0; 4096];
    let len = timeout(Duration::from_secs(5), socket.recv(&mut reply)).await.expect("an answer").unwrap();
    Message::from_vec(&reply[..len]).unwrap()
}

fn upstream(of: &Fake) -> Upstream {
    Upstream { address: of.address, network: None }
}

/// Of an upstream no other address is known.
fn nothing_more(_: &Upstream) -> Vec<IpAddr> {
    Vec::new()
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_is_asked_before_the_first_has_failed() {
    let (slow, quick) = (Fake::start("203.0.113.1").await, Fake::start("203.0.113.2").await);
    slow.silent.store(true, Relaxed);
    let unhurried = ForwarderOptions {
        patience: Duration::from_millis(100),
        timeout: Duration::from_secs(60),
        deadline: Duration::from_secs(60),
        ..options()
    };
    let server = Running::with(Mesh::new().table(), &[slow.address, quick.address], unhurried);
    assert_eq!(short(server.address, "one.example").await, ["203.0.113.2"]);
    assert_eq!((slow.count(), quick.count()), (1, 1));
    // Names are slow, too: only when it is overtaken again and again it is known, and not waited for any more.
    for name in ["two.example", "three.example"] {
        assert_eq!(short(server.address, name).await, ["203.0.113.2"]);
    }
    assert_eq!((slow.count(), quick.count()), (3, 3));
    assert_eq!(short(server.address, "four.example").await, ["203.0.113.2"]);
    assert_eq!((slow.count(), quick.count()), (3, 4));
}

/// Of two resolvers the first alone may know a name: that the second does not is no answer as long as the first may have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn that_a_name_is_absent_counts_when_those_before_have_had_their_time() {
    let public = Fake::with("203.0.113.2", |_, mut reply| {
        reply.metadata.response_code = ResponseCode::NXDomain;
        reply.answers.clear();
        Some(reply)
    })
    .await;
    // It answers after the other has.
    let overtaken = Arc::clone(&public.asked);
    let slow = Fake::with("203.0.113.1", move |_, reply| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while overtaken.lock().unwrap().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        Some(reply)
    })
    .await;
    let patient = ForwarderOptions {
        patience: Duration::from_millis(50),
        timeout: Duration::from_secs(2),
        deadline: Duration::from_secs(4),
        ..options()
    };
    let server = Running::with(Mesh::new().table(), &[slow.address, public.address], patient);
    assert_eq!(short(server.address, "www.corp").await, ["203.0.113.1"]);
    assert_eq!(public.count(), 1);
    slow.silent.store(true, Relaxed);
    let absent = dig(server.address, "other.corp").await;
    assert!(absent.contains("status: NXDOMAIN"), "{absent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_datagram_lost_is_not_the_end() {
    let lossy = Fake::with("203.0.113.1", {
        let first = AtomicBool::new(true);
        move |_, reply| (!first.swap(false, Relaxed)).then_some(reply)
    })
    .await;
    let server = Running::start(Mesh::new().table(), &[lossy.address]);
    assert_eq!(short(server.address, "one.example").await, ["203.0.113.1"]);
    assert_eq!(lossy.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_parallel_all_are_asked_and_the_first_answer_counts() {
    let (slow, quick) = (Fake::start("203.0.113.1").await, Fake::start("203.0.113.2").await);
    slow.silent.store(true, Relaxed);
    let unhurried = ForwarderOptions { patience: Duration::from_secs(60), ..options() };
    let server = Running::with(Mesh::new().table(), &[slow.address, quick.address], unhurried);
    server.forwarder.set_manner(Manner { order: Order::Parallel, random_case: false });
    for name in ["one.example", "two.example"] {
        assert_eq!(short(server.address, name).await, ["203.0.113.2"]);
    }
    assert_eq!((slow.count(), quick.count()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_counts_only_if_nobody_does_better() {
    let broken = Fake::with("203.0.113.1", |_, mut reply| {
        reply.metadata.response_code = ResponseCode::Refused;
        reply.answers.clear();
        Some(reply)
    })
    .await;
    let good = Fake::start("203.0.113.2").await;
    let server = Running::start(Mesh::new().table(), &[broken.address, good.address]);
    assert_eq!(short(server.address, "one.example").await, ["203.0.113.2"]);
    server.forwarder.set_host(&[broken.address]);
    for _ in 0..2 {
        let refused = dig(server.address, "two.example").await;
        assert!(refused.contains("status: REFUSED"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_questions_are_asked_once() {
    let fake = Fake::start("203.0.113.1").await;
    fake.silent.store(true, Relaxed);
    let unhurried = ForwarderOptions { deadline: options().deadline, ..unhurried() };
    let server = Running::with(Mesh::new().table(), &[fake.address], unhurried);
    let clients: Vec<UdpSocket> = futures_util::future::join_all(
        (0..20).map(|_| async { UdpSocket::bind("127.0.0.1:0").await.unwrap() }),
    )
    .await;
    for (index, client) in clients.iter().enumerate() {
        let mut asked = query(if index % 2 == 0 { "same.example." } else { "SAME.example." }, RecordType::A);
        asked.metadata.id = index as u16;
        client.send_to(&asked.to_vec().unwrap(), server.address).await.unwrap();
    }
    until("all are waiting", || server.view.counters.counts().forwarded == 20).await;
    assert_eq!(fake.count(), 1);
    // None of them has an answer; each is told so under its own ID, in its own spelling.
    for (index, client) in clients.iter().enumerate() {
        let mut octets = [0; 512];
        let len = timeout(Duration::from_secs(5), client.recv(&mut octets)).await.expect("told").unwrap();
        let told = Message::from_vec(&octets[..len]).unwrap();
        assert_eq!(told.metadata.id, index as u16);
        assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(told.queries[0].name().to_ascii().starts_with("SAME"), index % 2 == 1);
    }
    // That nobody answered is remembered for a second, and no longer (RFC 9520).
    let again = exchange(server.address, &query("same.example.", RecordType::A)).await;
    assert_eq!((again.metadata.response_code, fake.count()), (ResponseCode::ServFail, 1));
    fake.silent.store(false, Relaxed);
    let deadline = Instant::now() + Duration::from_secs(5);
    while short(server.address, "same.example").await != ["203.0.113.1"] {
        assert!(Instant::now() < deadline, "the failure is remembered for ever");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_does_not_take_the_room_of_the_others() {
    let fake = Fake::start("203.0.113.1").await;
    fake.silent.store(true, Relaxed);
    let few = ForwarderOptions { in_flight: 8, in_flight_of_one: 4, ..unhurried() };
    let server = Running::with(Mesh::with_web().table(), &[fake.address], few);
    let greedy = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    for index in 0..10 {
        let asked = query(&format!("n{index}.example."), RecordType::A).to_vec().unwrap();
        greedy.send_to(&asked, server.address).await.unwrap();
    }
    // Six of them are told at once.
    for _ in 0..6 {
        let mut octets = [0; 512];
        let len = timeout(Duration::from_secs(5), greedy.recv(&mut octets)).await.expect("told").unwrap();
        assert_eq!(Message::from_vec(&octets[..len]).unwrap().metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(server.view.counters.counts().limited, 6);
    fake.silent.store(false, Relaxed);
    let other = exchange(server.address, &query("other.example.", RecordType::A)).await;
    assert_eq!(other.answers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_is_better_than_nothing() {
    let fake = Fake::with("203.0.113.1", |_, mut reply| {
        reply.answers[0].ttl = 1;
        Some(reply)
    })
    .await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    assert_eq!(short(server.address, "one.example").await, ["203.0.113.1"]);
    fake.silent.store(true, Relaxed);
    let before = fake.count();
    // Asked again when it has expired; then what was known is told, for half a minute (RFC 8767).
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let told = dig(server.address, "one.example").await;
        assert!(told.contains("203.0.113.1"), "{told}");
        if fake.count() > before {
            assert!(told.contains("one.example.\t\t30\tIN\tA"), "{told}");
            break;
        }
        assert!(Instant::now() < deadline, "it never expires");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_case_is_asked_for_and_must_come_back() {
    let honest = Fake::start("203.0.113.1").await;
    let name = "abcdefghijklmnopqrstuvwxyz.example";
    let server = Running::start(Mesh::new().table(), &[honest.address]);
    server.forwarder.set_manner(Manner { order: Order::Preferred, random_case: true });
    assert_eq!(short(server.address, name).await, ["203.0.113.1"]);
    let asked = honest.last().queries[0].name().to_ascii();
    assert!(asked.eq_ignore_ascii_case(&format!("{name}.")) && asked != format!("{name}."), "{asked}");
    // One who guesses the ID still has to guess the case.
    let forger = Fake::with("203.0.113.66", |_, mut reply| {
        let lower = reply.queries[0].name().to_lowercase();
        reply.queries[0].set_name(lower);
        Some(reply)
    })
    .await;
    server.forwarder.set_host(&[forger.address]);
    let unanswered = dig(server.address, "zyxwvutsrqponmlkjihgfedcba.example").await;
    assert!(unanswered.contains("status: SERVFAIL"), "{unanswered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_go_to_their_own_resolvers_and_what_they_say_is_kept_apart() {
    let (host, corp, network) = (
        Fake::start("203.0.113.1").await,
        Fake::start("203.0.113.2").await,
        Fake::start("203.0.113.3").await,
    );
    let server = Running::start(Mesh::new().table(), &[host.address]);
    assert_eq!(short(server.address, "www.corp.example").await, ["203.0.113.1"]);
    let domains = [("corp.example".to_owned(), vec![upstream(&corp)])];
    server.view.routes.store(Arc::new(Routes::new(&domains, &[], None, nothing_more)));
    assert_eq!(short(server.address, "www.corp.example").await, ["203.0.113.2"], "not what the host's said");
    assert_eq!(short(server.address, "www.example").await, ["203.0.113.1"]);
    server.view.routes.store(Arc::new(Routes::new(&domains, &[upstream(&network)], None, nothing_more)));
    assert_eq!(short(server.address, "www.example").await, ["203.0.113.3"]);
    assert_eq!(short(server.address, "+tcp deep.www.corp.example").await, ["203.0.113.2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_ask_beyond_is_told_at_once_that_there_is_nothing() {
    let host = Fake::start("203.0.113.1").await;
    let server = Running::start(Mesh::with_web().table(), &[host.address]);
    let only = HashSet::from([ip("127.0.0.9")]);
    server.view.routes.store(Arc::new(Routes::new(&[], &[], Some(only), nothing_more)));
    for transport in ["+notcp", "+tcp"] {
        let absent = dig(server.address, &format!("{transport} www.example")).await;
        assert!(absent.contains("status: NXDOMAIN"), "{absent}");
    }
    assert_eq!(host.count(), 0, "nothing gets out");
    assert_eq!(short(server.address, "www").await, ["192.168.100.2"]);
    assert_eq!(short(server.address, "-b 127.0.0.9 www.example").await, ["203.0.113.1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bits_of_dnssec_pass_both_ways() {
    let fake = Fake::with("203.0.113.1", |_, mut reply| {
        reply.metadata.authentic_data = true;
        Some(reply)
    })
    .await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    for (index, (ok, disabled, authentic)) in
        [(true, false, false), (false, true, false), (false, false, true), (true, true, true)]
            .into_iter()
            .enumerate()
    {
        // One name for all: what was said to one must not be told another.
        let mut asked = query("same.example.", RecordType::A);
        asked.edns.as_mut().unwrap().set_dnssec_ok(ok);
        (asked.metadata.checking_disabled, asked.metadata.authentic_data) = (disabled, authentic);
        let told = exchange(server.address, &asked).await;
        assert_eq!(fake.count(), index + 1);
        let passed = fake.last();
        assert_eq!(passed.edns.as_ref().unwrap().flags().dnssec_ok, ok);
        assert_eq!(
            (passed.metadata.checking_disabled, passed.metadata.authentic_data),
            (disabled, authentic)
        );
        assert!(told.metadata.authentic_data);
    }
}

/// RFC 6303: addresses of networks that the client is not on are not there for it, and nobody outside hears of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc6303_nobody_else_is_asked_who_has_an_address_of_another_network() {
    let (host, corp) = (Fake::start("203.0.113.1").await, Fake::start("203.0.113.2").await);
    let server = Running::start(Mesh::with_web().table(), &[host.address]);
    let subnets = ["192.168.100.0/24", "fd00:64::/64", "10.7.0.0/16", "fd00:7::/64"];
    let withheld = Routes::withheld(subnets.map(|subnet| subnet.parse().unwrap()));
    server.view.routes.store(Arc::new(Routes::new(&[], &[], None, nothing_more).withholding(&withheld)));
    for (question, apex) in [
        ("-x 10.7.0.2", "7.10.in-addr.arpa."),
        ("-x fd00:7::2", "0.0.0.0.0.0.0.0.7.0.0.0.0.0.d.f.ip6.arpa."),
        ("2.0.7.10.in-addr.arpa TXT", "7.10.in-addr.arpa."),
    ] {
        for transport in ["+notcp", "+tcp"] {
            let absent = dig(server.address, &format!("{transport} {question}")).await;
            assert!(
                absent.contains("status: NXDOMAIN") && absent.contains("flags: qr aa rd ra;"),
                "{absent}"
            );
            let soa = absent.lines().find(|line| line.contains("hostmaster")).expect("an SOA");
            assert!(soa.starts_with(apex) && soa.contains("SOA"), "{soa}");
        }
    }
    assert_eq!(host.count(), 0, "nothing gets out");
    // Its own are found, and others' are asked for.
    assert_eq!(short(server.address, "-x 192.168.100.20").await, ["Lonely.Self-Network.mesh.internal."]);
    dig(server.address, "-x 10.8.0.2").await;
    dig(server.address, "-x 192.0.2.1").await;
    assert_eq!(host.count(), 2);
    // Who gives the zone a resolver wants it to be asked.
    let domains = [("7.10.in-addr.arpa".to_owned(), vec![upstream(&corp)])];
    server.view.routes.store(Arc::new(Routes::new(&domains, &[], None, nothing_more).withholding(&withheld)));
    dig(server.address, "-x 10.7.0.2").await;
    assert_eq!((host.count(), corp.count()), (2, 1));
}

/// RFC 8482: what there is of a foreign name is for its own servers to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc8482_any_of_a_foreign_name_is_asked_as_it_is_and_remembered() {
    let fake = Fake::start("203.0.113.1").await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    for _ in 0..2 {
        assert_eq!(short(server.address, "+notcp www.example ANY").await, ["203.0.113.1"]);
        assert_eq!((fake.count(), fake.last().queries[0].query_type()), (1, RecordType::ANY));
    }
    assert_eq!(short(server.address, "www.example A").await, ["203.0.113.1"]);
    assert_eq!(fake.count(), 2, "it is no answer to another type");
}

/// RFC 1034, 4.3.1: recursion is for who desires it; what is remembered is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc1034_4_3_1_nobody_is_asked_unless_recursion_is_desired() {
    let fake = Fake::start("203.0.113.1").await;
    let server = Running::start(Mesh::with_web().table(), &[fake.address]);
    for transport in ["+notcp", "+tcp"] {
        let refused = dig(server.address, &format!("{transport} +norecurse www.example")).await;
        assert!(refused.contains("status: REFUSED"), "{refused}");
        assert_eq!(short(server.address, &format!("{transport} +norecurse www")).await, ["192.168.100.2"]);
    }
    assert_eq!(fake.count(), 0);
}

/// RFC 5452, 9.2: whoever knows the last ones, or all before, does not know the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_and_ports_are_not_to_be_guessed() {
    let seen = Arc::<Mutex<Vec<(u16, u16)>>>::default();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, noted) = (socket.local_addr().unwrap(), seen.clone());
    let task = tokio::spawn(async move {
        let mut octets = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut octets).await {
            noted.lock().unwrap().push((u16::from_be_bytes([octets[0], octets[1]]), from.port()));
            octets[2] |= 0x80;
            socket.send_to(&octets[..len], from).await.unwrap();
        }
    });
    let server = Running::start(Mesh::new().table(), &[address]);
    for index in 0..GUESSES {
        exchange(server.address, &query(&format!("n{index}.example."), RecordType::A)).await;
    }
    task.abort();
    let (ids, ports): (Vec<u16>, Vec<u16>) = seen.lock().unwrap().iter().copied().unzip();
    assert!(ids.len() >= GUESSES);
    can_not_be_guessed("ID", &ids, 0, u16::MAX);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let range: Vec<u16> = range.split_whitespace().map(|end| end.parse().unwrap()).collect();
    can_not_be_guessed("port", &ports, range[0], range[1]);
}

const GUESSES: usize = 200;

/// No step leads from one number to the next, and they come from all parts of the range.
fn can_not_be_guessed(what: &str, numbers: &[u16], low: u16, high: u16) {
    let mut steps = HashMap::<u16, usize>::new();
    for pair in numbers.windows(2) {
        *steps.entry(pair[1].wrapping_sub(pair[0])).or_default() += 1;
    }
    let (step, count) = steps.into_iter().max_by_key(|(_, count)| *count).unwrap();
    assert!(count <= 5, "{count} times of {}, the next {what} is {step} further", numbers.len());
    // An eighth of them is to be expected in each eighth; so few happen once in a million times.
    let mut eighths = [0; 8];
    for number in numbers {
        let place = usize::from(number - low) * 8 / (usize::from(high - low) + 1);
        eighths[place] += 1;
    }
    assert!(eighths.iter().all(|count| *count >= 5), "{what}s are not spread over {low}-{high}: {eighths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_is_found_and_ends_when_it_does() {
    let one = Running::start(Mesh::new().table(), &[]);
    let good = Fake::start("203.0.113.1").await;
    let looping = |server: &Running| {
        let found = server.forwarder.conditions(&[]);
        found.iter().filter(|(_, condition)| *condition == mesh_dns::Condition::Loops).count()
    };
    // Two servers that are each other's upstream.
    let two = Running::start(Mesh::new().table(), &[one.address]);
    one.forwarder.set_host(&[two.address, good.address]);
    one.forwarder.look_for_loops(&[]).await;
    assert_eq!(looping(&one), 1);
    // A host's own resolver.
    let relay = relay(one.address).await;
    one.forwarder.set_host(&[relay.0, good.address]);
    let begun = Instant::now();
    one.forwarder.look_for_loops(&[]).await;
    assert_eq!(looping(&one), 1, "after {:?}", begun.elapsed());
    let before = good.count();
    assert_eq!(short(one.address, "www.example").await, ["203.0.113.1"]);
    assert_eq!(good.count(), before + 1, "the other one is asked at once");
    relay.1.abort();
    one.forwarder.look_for_loops(&[]).await;
    assert_eq!(looping(&one), 0);
}

/// Passes datagrams on, with the letters in another case.
async fn relay(to: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut octets = [0; 4096];
        while let Ok((len, from)) = socket.recv_from(&mut octets).await {
            octets[12..len].make_ascii_uppercase();
            let onward = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            onward.send_to(&octets[..len], to).await.unwrap();
            let mut reply = [0; 4096];
            if let Ok(Ok(len)) = timeout(Duration::from_secs(1), onward.recv(&mut reply)).await {
                socket.send_to(&reply[..len], from).await.unwrap();
            }
        }
    });
    (address, task)
}

/// RFC 7766, 6.2.1.1 and 7: a query that has to wait holds up none of those behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_7_answers_on_one_connection_come_when_they_are_there() {
    let fake = Fake::start("203.0.113.1").await;
    fake.silent.store(true, Relaxed);
    let slow = ForwarderOptions { deadline: Duration::from_secs(2), ..unhurried() };
    let server = Running::with(Mesh::with_web().table(), &[fake.address], slow);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut octets = Vec::new();
    for (id, name) in [(1, "slow.example."), (2, "www."), (3, "slower.example."), (4, "lonely.")] {
        let mut asked = query(name, RecordType::A);
        asked.metadata.id = id;
        let asked = asked.to_vec().unwrap();
        octets.extend((asked.len() as u16).to_be_bytes());
        octets.extend(asked);
    }
    stream.write_all(&octets).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let len = timeout(Duration::from_secs(5), stream.read_u16()).await.expect("an answer").unwrap();
        let mut reply = vec![0; len.into()];
        stream.read_exact(&mut reply).await.unwrap();
        ids.push(u16::from_be_bytes([reply[0], reply[1]]));
    }
    assert_eq!(ids[..2], [2, 4]);
    ids[2..].sort_unstable();
    assert_eq!(ids[2..], [1, 3]);
}

/// RFC 7766, 6.2.2: a client that pipelines without end is served at the pace at which it reads, in bounded memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_6_2_a_thousand_queries_on_one_connection() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    let (mut reader, mut writer) = TcpStream::connect(server.address).await.unwrap().into_split();
    let writing = tokio::spawn(async move {
        for id in 0..1000u16 {
            let mut asked = query("www.", RecordType::A);
            asked.metadata.id = id;
            let asked = asked.to_vec().unwrap();
            writer.write_all(&(asked.len() as u16).to_be_bytes()).await.unwrap();
            writer.write_all(&asked).await.unwrap();
        }
        writer
    });
    let mut seen = HashSet::new();
    for _ in 0..1000 {
        let len = timeout(Duration::from_secs(5), reader.read_u16()).await.expect("an answer").unwrap();
        let mut reply = vec![0; len.into()];
        reader.read_exact(&mut reply).await.unwrap();
        seen.insert(u16::from_be_bytes([reply[0], reply[1]]));
    }
    assert_eq!(seen.len(), 1000);
    drop(writing.await.unwrap());
    // RFC 7766, 6.2.4: closed by the client, it is closed.
    let end = timeout(Duration::from_secs(5), reader.read(&mut [0; 1])).await.expect("the end").unwrap();
    assert_eq!(end, 0);
}
