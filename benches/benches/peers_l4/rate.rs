//! Connections a second: several clients at once, each connecting, asking and being answered by a server that then closes,
//! as after an HTTP request with `Connection: close`. The client's ports are free again at once, as it is the server that
//! remembers the connection (TIME_WAIT).

use super::{
    Contender,
    traffic::{self, CLIENT_CPU, SERVER_CPU, pin},
};
use anyhow::{Result, ensure};
use mesh_tests::Namespace;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

pub(super) const ONCE_PORT: u16 = 8;
pub(super) const CLIENTS: usize = 8;
/// More than there are clients: some are still busy with connections that have ended for the client.
const ANSWERING: usize = 2 * CLIENTS;

/// What the clients met.
#[derive(Debug, Default)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) failed: usize,
}

/// Answers at a port of a server, unless another contender's are answered there already. Its threads end with the bench.
pub(super) fn serve(server: &Namespace, port: u16) -> Result<()> {
    let listener = match server.inside(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))))? {
        Err(err) if err.kind() == ErrorKind::AddrInUse => return Ok(()),
        listener => listener?,
    };
    for _ in 0..ANSWERING {
        let listener = listener.try_clone()?;
        drop(thread::spawn(move || {
            pin(SERVER_CPU)?;
            // One that has gone meanwhile, or says nothing, fails for its client.
            listener.incoming().flatten().for_each(|stream| drop(answer(stream)));
            anyhow::Ok(())
        }));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut bytes = [0; 64];
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut bytes)?;
    Ok(stream.write_all(&bytes)?)
}

/// As many as it can be for a while.
pub(super) fn rate(contender: &Contender, length: Duration) -> Result<Rate> {
    contender.client.inside(|| {
        // The threads inherit it.
        pin(CLIENT_CPU)?;
        let start = Instant::now();
        let counts = thread::scope(|scope| {
            let clients: Vec<_> =
                (0..CLIENTS).map(|_| scope.spawn(|| ask(contender, start + length))).collect();
            let joined = clients.into_iter().map(|client| client.join());
            joined
                .map(|counts| counts.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        let answered: usize = counts.iter().map(|(answered, _)| answered).sum();
        let failed = counts.iter().map(|(_, failed)| failed).sum();
        Ok(Rate { per_second: answered as f64 / start.elapsed().as_secs_f64(), failed })
    })
}

/// How many connections were answered until then, and how many failed.
fn ask(contender: &Contender, until: Instant) -> (usize, usize) {
    let (mut answered, mut failed) = (0, 0);
    while Instant::now() < until {
        match once(contender, ONCE_PORT) {
            Ok(()) => answered += 1,
            Err(_) => failed += 1,
        }
    }
    (answered, failed)
}

/// One connection to a port that [`serve`] answers at.
pub(super) fn once(contender: &Contender, port: u16) -> Result<()> {
    let mut stream = traffic::connect(contender, port)?;
    stream.write_all(&[7; 64])?;
    let mut bytes = [0; 64];
    stream.read_exact(&mut bytes)?;
    // The server's end first.
    ensure!(stream.read(&mut bytes)? == 0, "more than was asked for");
    Ok(())
}
