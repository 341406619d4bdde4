//! Connections (RFC 7766), a test a rule, named after its section.

use crate::{
    conformance::MANY,
    dig::{Running, short},
    fixture::{Mesh, query},
    upstreams::Fake,
};
use hickory_proto::{op::Message, rr::RecordType};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};

/// How long something may take that has to happen.
const LIMIT: Duration = Duration::from_secs(30);
/// As short as a test can wait for.
const IDLE: Duration = Duration::from_millis(500);

/// A query behind its length.
fn framed(name: &str) -> Vec<u8> {
    let message = query(name, RecordType::A).to_vec().unwrap();
    [&(message.len() as u16).to_be_bytes()[..], &message].concat()
}

async fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let reading = async {
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        reply
    };
    timeout(LIMIT, reading).await.expect("an answer")
}

fn address(answer: &[u8]) -> String {
    Message::from_vec(answer).unwrap().answers[0].data.to_string()
}

/// Waits for the end of what the server sends, and that there is nothing before it.
async fn is_closed(stream: &mut TcpStream) {
    let read = timeout(LIMIT, stream.read(&mut [0; 1])).await.expect("it is closed");
    assert_eq!(read.unwrap_or(0), 0);
}

/// What the kernel says of one end of a connection.
async fn ss(options: &str, from: SocketAddr, to: SocketAddr) -> String {
    let filter = format!("sport = :{} and dport = :{}", from.port(), to.port());
    let said =
        Command::new("ss").args([options, &filter]).output().await.expect("ss runs (Debian: iproute2)");
    String::from_utf8(said.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_6_2_3_an_idle_connection_is_kept_for_a_while_and_then_closed() {
    let server = Running::with_idle(Mesh::with_web().table(), &[], IDLE);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        let begun = Instant::now();
        stream.write_all(&framed("lonely.")).await.unwrap();
        assert_eq!(address(&answer(&mut stream).await), "192.168.100.20");
        // Each query starts the time anew.
        let idle = timeout(IDLE / 2, stream.read(&mut [0; 1])).await;
        assert!(idle.is_err() || begun.elapsed() > IDLE, "closed after {:?}", begun.elapsed());
    }
    let mut last = TcpStream::connect(server.address).await.unwrap();
    last.write_all(&framed("lonely.")).await.unwrap();
    let asked = Instant::now();
    answer(&mut last).await;
    is_closed(&mut last).await;
    assert!(asked.elapsed() >= IDLE, "closed after {:?}", asked.elapsed());
    // Who connects and says nothing is no better.
    let mut mute = TcpStream::connect(server.address).await.unwrap();
    is_closed(&mut mute).await;
    server.stop().await;
}

/// Who waits for an answer is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_6_2_3_a_connection_that_waits_for_an_answer_is_not_idle() {
    let slow = Fake::slow("203.0.113.1", Duration::from_millis(300)).await;
    let server = Running::with_idle(Mesh::with_web().table(), &[slow.address], Duration::from_millis(50));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&framed("slow.example.")).await.unwrap();
    assert_eq!(address(&answer(&mut stream).await), "203.0.113.1");
    is_closed(&mut stream).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_8_length_and_message_are_sent_as_one() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..5 {
        stream.write_all(&framed("lonely.")).await.unwrap();
        answer(&mut stream).await;
    }
    let said = ss("-Htin", stream.local_addr().unwrap(), server.address).await;
    let segments = said.split_whitespace().find_map(|word| word.strip_prefix("data_segs_in:"));
    assert_eq!(segments, Some("5"), "{said}");
    server.stop().await;
}

/// RFC 7766, 8: a length is two octets, however they come; what is never whole is waited for no longer than for a query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_8_half_a_length_or_message_is_waited_for_and_then_closed() {
    let server = Running::with_idle(Mesh::with_web().table(), &[], IDLE);
    let whole = framed("lonely.");
    for part in [1, 2, 3, whole.len() - 1] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&whole[..part]).await.unwrap();
        is_closed(&mut stream).await;
        // Closed by the client in the middle of it, too.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&whole[..part]).await.unwrap();
        stream.shutdown().await.unwrap();
        is_closed(&mut stream).await;
    }
    // One octet after the other does not keep it open: the message has as long as a query may take.
    let (mut reader, mut writer) = TcpStream::connect(server.address).await.unwrap().into_split();
    let trickle = tokio::spawn(async move {
        for octet in framed("lonely.").iter().cycle().take(10_000).skip(1) {
            // A length of much more than ever comes.
            if writer.write_all(&[octet | 0x40]).await.is_err() {
                return;
            }
            tokio::time::sleep(IDLE / 10).await;
        }
    });
    let end = timeout(LIMIT, reader.read(&mut [0; 1])).await.expect("it is closed");
    assert_eq!(end.unwrap_or(0), 0);
    trickle.abort();
    assert_eq!(server.view.counters.counts().tcp, 0, "none of it was a query");
    assert_eq!(short(server.address, "+tcp lonely").await, ["192.168.100.20"]);
    server.stop().await;
}

/// RFC 7766, 6.2.4: who closes its own half still gets what it has asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_6_2_4_a_half_closed_connection_is_answered_and_closed() {
    let slow = Fake::slow("203.0.113.1", Duration::from_millis(200)).await;
    let server = Running::start(Mesh::with_web().table(), &[slow.address]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[framed("slow.example."), framed("lonely.")].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(address(&answer(&mut stream).await), "192.168.100.20");
    assert_eq!(address(&answer(&mut stream).await), "203.0.113.1");
    is_closed(&mut stream).await;
    server.stop().await;
}

/// RFC 7766, 6.2.2 and 7: pipelining is served at the pace at which the client reads, in bounded memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_7_ten_thousand_questions_of_who_never_reads_take_no_memory() {
    let server = Running::start(MANY.clone(), &[]);
    let mut whole = TcpStream::connect(server.address).await.unwrap();
    whole.write_all(&framed("tasks.many.")).await.unwrap();
    let len = answer(&mut whole).await.len() + 2;
    assert!(len > 16_000, "{len}");
    let before = server.view.counters.counts().tcp;
    let (reader, mut writer) = TcpStream::connect(server.address).await.unwrap().into_split();
    let client = reader.local_addr().unwrap();
    let asking = tokio::spawn(async move {
        let question = framed("tasks.many.");
        for _ in 0..10_000 {
            if writer.write_all(&question).await.is_err() {
                return;
            }
        }
        // The other half stays open.
        std::future::pending().await
    });
    // What was made and is not yet the kernel's: no more than waits, is being sent and has no room.
    let most = 2 * 65_535 + (65_535 + len) + len;
    let (mut made, mut waits) = (0, 0);
    let deadline = Instant::now() + LIMIT;
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = (server.view.counters.counts().tcp - before) as usize;
        let column = async |from, to, column: usize| -> usize {
            let said = ss("-Htn", from, to).await;
            said.split_whitespace().nth(column).and_then(|octets| octets.parse().ok()).unwrap_or(0)
        };
        let kernel = column(server.address, client, 2).await + column(client, server.address, 1).await;
        waits = waits.max((now * len).saturating_sub(kernel));
        assert_eq!(short(server.address, "+notcp many").await, ["192.168.100.2"], "others are answered");
        if now > 0 && now == made {
            break;
        }
        assert!(Instant::now() < deadline && now < 5_000, "{now} answers are made for who reads none");
        made = now;
    }
    println!("{made} answers made, {waits} octets wait");
    let stalled = (made * len).saturating_sub(waits);
    assert!(waits <= most, "{waits} octets wait, {stalled} are the kernel's");
    assert_eq!(short(server.address, "+tcp many").await, ["192.168.100.2"]);
    asking.abort();
    drop(reader);
    server.stop().await;
}

/// A server that ends closes as an idle one does: what has come is answered, and no answer is lost to a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc7766_6_2_3_a_server_that_ends_answers_what_has_come_and_closes_without_a_reset() {
    const QUERIES: usize = 200;
    let server = Running::start(Mesh::with_web().table(), &[]);
    let address_of = server.address;
    let mut stream = TcpStream::connect(address_of).await.unwrap();
    stream.write_all(&framed("lonely.")).await.unwrap();
    answer(&mut stream).await;
    stream.write_all(&framed("lonely.").repeat(QUERIES)).await.unwrap();
    let ends = tokio::spawn(server.stop());
    for number in 0..QUERIES {
        let answer = timeout(LIMIT, answer(&mut stream)).await;
        assert_eq!(address(&answer.unwrap_or_else(|_| panic!("no answer {number}"))), "192.168.100.20");
    }
    for _ in 0..2 {
        let read = timeout(LIMIT, stream.read(&mut [0; 1])).await.expect("it is closed");
        assert_eq!(read.expect("no reset"), 0);
        // Asked too late: not answered, and no reset either.
        stream.write_all(&framed("lonely.")).await.unwrap();
    }
    drop(stream);
    timeout(LIMIT, ends).await.expect("it ends").unwrap();
}
