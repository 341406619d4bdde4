//! A table that is swapped all the time.

use crate::{
    dig::Running,
    fixture::{Mesh, ip},
    staleness::{Heard, MAX_AGE, keep_swapping, query},
};
use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime},
};

/// How long the table is swapped.
const SWAPPED: Duration = Duration::from_secs(2);
/// One that has no answer by then is lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions that are under way of the others' names.
const UNDER_WAY: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_lost_and_none_stale_while_the_table_is_swapped_a_hundred_times_a_second() {
    let mut mesh = Mesh::with_web();
    let changing = mesh.endpoint_at("changing", vec![ip("192.168.100.40")], |_| {});
    let changing = mesh.snapshot.endpoints[&changing].clone();
    let server = Running::start(mesh.table(), &[]);
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut heard, mut swaps): (Heard, Vec<SystemTime>) = Default::default();
    tokio::task::block_in_place(|| {
        thread::scope(|scope| {
            let (over, table) = (&over, &server.table);
            let is_over = || over.load(Relaxed);
            let swapped = |at| swaps.push(at);
            scope.spawn(move || keep_swapping(mesh.snapshot, &changing, table, || true, is_over, swapped));
            scope.spawn(|| heard.ask(&client(server.address), &query("changing"), over).unwrap());
            scope.spawn(|| load(server.address, over, &asked));
            thread::sleep(SWAPPED);
            over.store(true, Relaxed);
        });
    });
    assert_eq!(heard.lost, 0, "queries for the name that changes");
    // As seen when it was asked: what comes to the ear of a process that has no processor then is not the server's.
    let ages = heard.said.iter().filter_map(|said| said.age(said.asked, &swaps));
    let oldest = ages.max().unwrap_or_default();
    assert!(oldest <= MAX_AGE, "an answer was behind for {oldest:?}");
    let seen = heard.said.iter().filter(|said| said.age(SystemTime::now(), &swaps[1..]).is_some()).count();
    assert!(seen > 10, "{seen} answers of {} swaps were about the name", swaps.len());
    assert_eq!(server.view.counters.counts().answered, asked.load(Relaxed) + heard.said.len() as u64);
    server.stop().await;
}

fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Asks for another name as fast as it is answered. Each has to be.
fn load(server: SocketAddr, over: &AtomicBool, asked: &AtomicU64) {
    let (socket, query, mut answer) = (client(server), query("www"), [0; 512]);
    while !over.load(Relaxed) {
        for _ in 0..UNDER_WAY {
            socket.send(&query).unwrap();
        }
        for _ in 0..UNDER_WAY {
            let len = socket.recv(&mut answer).expect("an answer");
            assert_eq!(answer[..len].last_chunk(), Some(&[192, 168, 100, 2]));
        }
        asked.fetch_add(UNDER_WAY as u64, Relaxed);
    }
}
