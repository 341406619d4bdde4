//! Queries, and `dnsperf` that sends them.

use super::{
    place::{CLIENT_CPU, Contender, Place},
    zone::{Zone, reverse},
};
use anyhow::{Context, Result, ensure};
use mesh_benches::measure::Samples;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use std::{collections::BTreeMap, fs};

/// Queries in a file at least; dnsperf starts anew at its end.
const LINES: usize = 20_000;
/// Of the run that counts latencies.
const LATENCY_SECONDS: u64 = 1;
/// One that has no answer by then is lost.
const PATIENCE: &str = "2";

/// How contenders are asked.
pub(super) struct Shape {
    pub(super) title: &'static str,
    /// Not only for addresses that are there.
    pub(super) every_kind: bool,
    pub(super) load: Load,
}

/// How much is asked, and by how many.
#[derive(Clone, Copy)]
pub(super) struct Load {
    /// Sockets that ask. Answers to one may go out together, which those to many can't.
    pub(super) clients: u32,
    /// Queries a second of all; none for as many as are answered.
    pub(super) rate: Option<u32>,
}

/// Queries for every name of a zone, in random order, in a file of the lab.
pub(super) struct Queries {
    path: String,
    /// How many answers of each code the whole file brings.
    codes: BTreeMap<String, u64>,
}

/// What dnsperf says of a run.
pub(super) struct Asked {
    pub(super) completed: u64,
    pub(super) lost: u64,
    pub(super) per_second: f64,
    codes: BTreeMap<String, u64>,
}

/// How late the answers of a run came, in seconds.
pub(super) struct Latencies {
    pub(super) samples: Samples,
    pub(super) lost: u64,
}

impl Queries {
    pub(super) fn write(place: &Place, zone: &Zone, every_kind: bool) -> Result<Self> {
        let mut names: Vec<_> = zone.records().collect();
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut text, mut codes) = (String::new(), BTreeMap::<_, u64>::new());
        for _ in 0..LINES.div_ceil(names.len()) {
            names.shuffle(&mut rng);
            for (at, (name, address)) in names.iter().enumerate() {
                // Half are for addresses, as without the others.
                let (line, code) = match at % 8 {
                    4 | 5 if every_kind => (format!("{name} AAAA\n"), "NOERROR"),
                    6 if every_kind => (format!("{} PTR\n", reverse(*address)), "NOERROR"),
                    7 if every_kind => (format!("no-{name} A\n"), "NXDOMAIN"),
                    _ => (format!("{name} A\n"), "NOERROR"),
                };
                text += &line;
                *codes.entry(code.to_owned()).or_default() += 1;
            }
        }
        let path = format!("/run/lab/queries-{every_kind}");
        fs::write(place.host.file(&path), text)?;
        Ok(Self { path, codes })
    }

    /// Answers must have the codes that they should, each as often: those of a few seconds, since one may be slow.
    pub(super) fn check(&self, place: &Place, contender: &Contender) -> Result<()> {
        let asked = dnsperf(place, contender, &["-d", &self.path, "-n", "1", "-l", "5", "-c", "1"])?;
        let of = |codes: &BTreeMap<String, u64>, code| *codes.get(code).unwrap_or(&0) as f64;
        let all: u64 = self.codes.values().sum();
        let as_expected = self.codes.keys().chain(asked.codes.keys()).all(|code| {
            let (share, expected) =
                (of(&asked.codes, code) / asked.completed as f64, of(&self.codes, code) / all as f64);
            (share - expected).abs() < 0.01
        });
        ensure!(as_expected, "answers {:?}, expected {:?}", asked.codes, self.codes);
        Ok(())
    }

    pub(super) fn ask(
        &self,
        place: &Place,
        contender: &Contender,
        load: Load,
        seconds: u64,
    ) -> Result<Asked> {
        let options = self.options(load, seconds);
        dnsperf(place, contender, &options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(super) fn latencies(&self, place: &Place, contender: &Contender, load: Load) -> Result<Latencies> {
        let mut options = self.options(load, LATENCY_SECONDS);
        options.push("-v".to_owned());
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let said = said(place, contender, &options)?;
        // "> NOERROR service1.bench.mesh.internal A 0.000123"
        let latency = |line: &str| line.strip_prefix("> ")?.rsplit(' ').next()?.parse().ok();
        let mut samples = Samples::default();
        said.lines().filter_map(latency).for_each(|seconds| samples.push(seconds));
        Ok(Latencies { samples, lost: Asked::parse(&said)?.lost })
    }

    fn options(&self, load: Load, seconds: u64) -> Vec<String> {
        let (clients, seconds) = (load.clients.to_string(), seconds.to_string());
        let mut options = ["-d", &self.path, "-l", &seconds, "-c", &clients].map(str::to_owned).to_vec();
        options.extend(load.rate.into_iter().flat_map(|rate| ["-Q".to_owned(), rate.to_string()]));
        options
    }
}

fn dnsperf(place: &Place, contender: &Contender, options: &[&str]) -> Result<Asked> {
    Asked::parse(&said(place, contender, options)?)
}

/// What dnsperf printed. By way of a file: to read a pipe would take the processor from one of the two.
fn said(place: &Place, contender: &Contender, options: &[&str]) -> Result<String> {
    const SAID: &str = "/run/lab/dnsperf";
    let (address, port) = (place.address, contender.port);
    let options = options.join(" ");
    let line = format!(
        "taskset --cpu-list {CLIENT_CPU} dnsperf -s {address} -p {port} -T 1 -q 100 -t {PATIENCE} \
         -O suppress=congestion,timeout,unexpected {options} >{SAID}"
    );
    place.client.shell(&line).ok()?;
    Ok(fs::read_to_string(place.client.file(SAID))?)
}

impl Asked {
    fn parse(said: &str) -> Result<Self> {
        let field = |name: &str| {
            let found = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
            found.map(str::trim).with_context(|| format!("no {name} in what dnsperf says: {said}"))
        };
        let number = |name| -> Result<f64> {
            let number = field(name)?.split(' ').next().unwrap_or_default();
            number.parse().with_context(|| format!("{name} {number}"))
        };
        // "NOERROR 17500 (87.50%), NXDOMAIN 2500 (12.50%)"
        let code = |part: &str| {
            let mut words = part.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        Ok(Self {
            completed: number("Queries completed:")? as u64,
            lost: number("Queries lost:")? as u64,
            per_second: number("Queries per second:")?,
            codes: field("Response codes:")?.split(',').filter_map(code).collect(),
        })
    }
}
