//! What runs between a client and a server, which are pinned to a processor each. Other benches take this file by its path.

use super::Contender;
use anyhow::{Context, Result};
use mesh_benches::measure::{Samples, busy};
use mesh_tests::{Background, within};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Where [`Server`] answers bytes with bytes.
pub(super) const ECHO_PORT: u16 = 7;
const TRIPS: usize = 3_000;
const CONNECTIONS: usize = 500;
pub(super) const CLIENT_CPU: usize = 0;
pub(super) const SERVER_CPU: usize = 1;

/// iperf3 and an echo in a contender's server container.
pub(super) struct Server {
    /// None if another contender has started it in the same container.
    _iperf3: Option<Background>,
}

impl Server {
    pub(super) fn start(contender: &Contender) -> Result<Self> {
        let cpu = SERVER_CPU.to_string();
        let iperf3 = match contender.server.inside(|| Ok(TcpListener::bind(("0.0.0.0", ECHO_PORT))))? {
            Ok(listener) => {
                drop(thread::spawn(move || echo(&listener)));
                Some(contender.server.spawn(&["taskset", "--cpu-list", &cpu, "iperf3", "--server"])?)
            }
            Err(err) if err.kind() == ErrorKind::AddrInUse => None,
            Err(err) => return Err(err.into()),
        };
        within(Duration::from_secs(10), "the echo answers", || connections_of(contender, 1))?;
        Ok(Self { _iperf3: iperf3 })
    }
}

fn echo(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || {
            pin(SERVER_CPU)?;
            stream.set_nodelay(true)?;
            let mut bytes = [0; 64];
            while stream.read_exact(&mut bytes).is_ok() {
                stream.write_all(&bytes)?;
            }
            anyhow::Ok(())
        });
    }
}

/// One TCP connection that carries as much as it can.
pub(super) struct Stream {
    pub(super) gbit_per_s: f64,
    pub(super) processor_per_gib: f64,
}

pub(super) fn stream(contender: &Contender, length: Duration) -> Result<Stream> {
    let idle = worked(|| {
        thread::sleep(length);
        Ok(())
    });
    let ((), idle) = idle?;
    let (seconds, address, cpu) =
        (length.as_secs().to_string(), contender.address.to_string(), CLIENT_CPU.to_string());
    let line = ["taskset", "--cpu-list", &cpu, "iperf3", "--json", "--time", &seconds, "--client", &address];
    let (report, busy) = worked(|| contender.client.output(&line).json())?;
    let end = &report["end"]["sum_received"];
    let bits = end["bits_per_second"].as_f64().context("no throughput in iperf3's report")?;
    let bytes = end["bytes"].as_f64().context("no bytes in iperf3's report")?;
    let gib = bytes / f64::from(1 << 30);
    Ok(Stream { gbit_per_s: bits / 1e9, processor_per_gib: busy.saturating_sub(idle).as_secs_f64() / gib })
}

/// What the machine worked while something ran.
fn worked<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let before = busy()?;
    let done = run()?;
    Ok((done, busy()?.saturating_sub(before)))
}

/// Round trips of 64 bytes on one connection, in microseconds.
pub(super) fn round_trips(contender: &Contender) -> Result<Samples> {
    contender.client.inside(|| {
        pin(CLIENT_CPU)?;
        let mut stream = connect(contender, ECHO_PORT)?;
        let (mut samples, mut bytes) = (Samples::default(), [7; 64]);
        for _ in 0..TRIPS {
            let start = Instant::now();
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(samples)
    })
}

/// Connections one after the other, each for one round trip, in microseconds.
pub(super) fn connections(contender: &Contender) -> Result<Samples> {
    connections_of(contender, CONNECTIONS)
}

fn connections_of(contender: &Contender, count: usize) -> Result<Samples> {
    contender.client.inside(|| {
        pin(CLIENT_CPU)?;
        let (mut samples, mut bytes) = (Samples::default(), [7; 64]);
        for _ in 0..count {
            let start = Instant::now();
            let mut stream = connect(contender, ECHO_PORT)?;
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            drop(stream);
            samples.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(samples)
    })
}

pub(super) fn connect(contender: &Contender, port: u16) -> Result<TcpStream> {
    let address = (contender.address, port).into();
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Keeps the calling thread on one processor.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The first line that a program prints about itself, on whichever of its outputs.
pub(super) fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text =
        output.map(|output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
    let text = text.unwrap_or_default();
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}
