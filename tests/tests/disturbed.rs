//! Nodes that are killed, paused and cut off at random: the others know within seconds, nobody is taken for dead who was
//! left alone, and who returns is welcome without anybody's doing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{env, fmt};

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Partition, field, scenario};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// How many disturbances there are, unless told.
const SHORT: u32 = 4;
/// For how long a disturbance goes on after all know of it, at most, unless told; in seconds.
const LONGEST: u64 = 2;
/// How long all is left alone after each.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Killed,
    Paused,
    CutOff,
}

/// What is done, and to whom: numbers of hosts.
struct Plan {
    kind: Kind,
    victims: BTreeSet<usize>,
}

impl Plan {
    fn random(rng: &mut StdRng) -> Self {
        let kind = *[Kind::Killed, Kind::Paused, Kind::CutOff].choose(rng).unwrap_or(&Kind::Killed);
        let mut order = [0, 1, 2];
        order.shuffle(rng);
        // Now and then only one is left.
        let count = if rng.random_bool(0.25) { 2 } else { 1 };
        Self { kind, victims: order.into_iter().take(count).collect() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.victims.iter().map(|victim| format!("vm{}", victim + 1)).collect();
        write!(f, "{} {:?}", names.join(" and "), self.kind)
    }
}

/// The status of each node as one of them tells it, by their names.
type View = BTreeMap<String, String>;

fn view(host: &Host) -> Result<View> {
    let nodes = host.meshctl(&["-o", "json", "node", "ls"]).json()?;
    Ok(nodes.as_array().context("no list")?.iter().map(|n| (field(n, "name"), field(n, "status"))).collect())
}

struct Scene {
    cluster: Cluster,
    hosts: Vec<Host>,
    /// How long the truth may take.
    truth: Duration,
}

impl Scene {
    fn all(&self) -> BTreeSet<usize> {
        (0..self.hosts.len()).collect()
    }

    fn name(&self, number: usize) -> &str {
        self.hosts[number].name()
    }

    /// Looks at what `observers` say again and again. None of `alive` may be down to any of them at any time. Returns how
    /// long after `since` all of them had `down` as down, and all others as ready; fails when that is too long.
    fn agree(
        &self,
        since: Instant,
        observers: &BTreeSet<usize>,
        alive: &BTreeSet<usize>,
        down: &BTreeSet<usize>,
    ) -> Result<Duration> {
        loop {
            let began = since.elapsed();
            let mut wrong = Vec::new();
            for observer in observers {
                // Just started, its socket may not answer yet.
                let seen = match view(&self.hosts[*observer]) {
                    Ok(seen) => seen,
                    Err(err) => {
                        wrong.push(format!("{}: {err:#}", self.name(*observer)));
                        continue;
                    }
                };
                self.none_down(*observer, &seen, alive)?;
                let is = |number: &usize| seen.get(self.name(*number)).map(String::as_str);
                let told = |number| if down.contains(number) { "down" } else { "ready" };
                if self.all().iter().any(|number| is(number) != Some(told(number))) {
                    wrong.push(format!("{}: {seen:?}", self.name(*observer)));
                }
            }
            if wrong.is_empty() {
                return Ok(since.elapsed());
            }
            ensure!(began < self.truth, "after {began:?} still {wrong:?}");
        }
    }

    /// Looks on for a while: all stays as it is.
    fn stays(
        &self,
        observers: &BTreeSet<usize>,
        alive: &BTreeSet<usize>,
        down: &BTreeSet<usize>,
        time: Duration,
    ) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            for observer in observers {
                let seen = view(&self.hosts[*observer])?;
                self.none_down(*observer, &seen, alive)?;
                let back =
                    down.iter().find(|number| seen.get(self.name(**number)).is_none_or(|s| s != "down"));
                ensure!(back.is_none(), "{}: {seen:?}, though {down:?} are away", self.name(*observer));
            }
        }
        Ok(())
    }

    fn none_down(&self, observer: usize, seen: &View, alive: &BTreeSet<usize>) -> Result<()> {
        let wrong = alive.iter().find(|number| seen.get(self.name(**number)).is_some_and(|s| s == "down"));
        ensure!(wrong.is_none(), "a false 'down' on {}: {seen:?}", self.name(observer));
        Ok(())
    }

    /// One disturbance. Returns how long it took until it was known, and until it was over for all.
    fn survive(&mut self, plan: &Plan, longest: Duration) -> Result<(Duration, Duration)> {
        let alone: BTreeSet<usize> = self.all().difference(&plan.victims).copied().collect();
        let mut cut = Vec::new();
        let began = Instant::now();
        match plan.kind {
            Kind::Killed => {
                plan.victims.iter().try_for_each(|victim| self.cluster.daemons[*victim].kill())?
            }
            Kind::Paused => {
                plan.victims.iter().try_for_each(|victim| self.cluster.daemons[*victim].pause())?
            }
            Kind::CutOff => {
                for victim in &plan.victims {
                    let others: Vec<_> =
                        self.all().iter().filter(|n| *n != victim).map(|n| self.hosts[*n].clone()).collect();
                    cut.push(Partition::isolate(&self.hosts[*victim], &others.iter().collect::<Vec<_>>())?);
                }
            }
        }
        let known = self.agree(began, &alone, &alone, &plan.victims).context("the loss is known")?;
        self.stays(&alone, &alone, &plan.victims, longest).context("while it lasts")?;
        match plan.kind {
            Kind::Killed => {
                plan.victims.iter().try_for_each(|victim| self.cluster.daemons[*victim].start())?
            }
            Kind::Paused => {
                plan.victims.iter().try_for_each(|victim| self.cluster.daemons[*victim].resume())?
            }
            Kind::CutOff => cut.into_iter().try_for_each(Partition::heal)?,
        }
        let back = Instant::now();
        // Who was cut off has reasons to believe that the others are gone; who was not there has none.
        if plan.kind != Kind::CutOff {
            self.agree(back, &plan.victims, &alone, &BTreeSet::new()).context("who was away is wrong")?;
        }
        let healed =
            self.agree(back, &self.all(), &BTreeSet::new(), &BTreeSet::new()).context("all is well again")?;
        self.stays(&self.all(), &self.all(), &BTreeSet::new(), QUIET).context("afterwards")?;
        Ok((known, healed))
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// `MESH_DISTURBANCES`, `MESH_DISTURBANCE_SECONDS`, `MESH_TRUTH_SECONDS` and `MESH_SEED` change how many there are, how
/// long each lasts at most, how long `node ls` may take to tell the truth, and which they are (`scripts/soak membership`).
#[test]
fn the_others_know_and_nobody_else_is_taken_for_dead() {
    scenario("disturbed", |lab| {
        let count = number("MESH_DISTURBANCES").and_then(|count| u32::try_from(count).ok()).unwrap_or(SHORT);
        let longest = number("MESH_DISTURBANCE_SECONDS").unwrap_or(LONGEST).max(1);
        let truth = number("MESH_TRUTH_SECONDS").map_or(CONVERGES, Duration::from_secs);
        let seed = number("MESH_SEED").unwrap_or_else(rand::random);
        println!("{count} disturbances; MESH_SEED={seed} repeats them");
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = Cluster::three(lab)?;
        let hosts = cluster.daemons.iter().map(|daemon| daemon.host().clone()).collect();
        let mut scene = Scene { cluster, hosts, truth };
        scene.agree(Instant::now(), &scene.all(), &scene.all(), &BTreeSet::new())?;
        let mut slowest = (Duration::ZERO, Duration::ZERO);
        for round in 1..=count {
            let plan = Plan::random(&mut rng);
            let length = Duration::from_millis(rng.random_range(500..=longest * 1000));
            let what = format!("disturbance {round}, seed {seed}: {plan}");
            let (known, healed) = scene.survive(&plan, length).with_context(|| what.clone())?;
            slowest = (slowest.0.max(known), slowest.1.max(healed));
            println!("{what}: known after {known:.1?}, {length:.1?} later all well after {healed:.1?}");
        }
        println!(
            "known after {:.1?} at most, healed after {:.1?}; nobody was taken for dead",
            slowest.0, slowest.1
        );
        Ok(())
    });
}
