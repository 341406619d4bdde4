//! The replicas of a service are replaced one after the other, under load, and some of them are killed before they are
//! drained. `MESH_REPLACEMENTS` and `MESH_SEED` change how many there are, and which (`scripts/soak replace`).

use std::collections::VecDeque;
use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Machine;
use mesh_tests::{
    Backend, CONVERGES, Cluster, Flows, Host, Killed, Visits, Wrks, field, scenario, within, wrk,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// How many there are, unless told.
const SHORT: u32 = 5;
const REPLICAS: usize = 5;

struct Scene {
    cluster: Cluster,
    client: Machine,
    /// The first is the next to go.
    replicas: VecDeque<Backend>,
    started: usize,
    killed: Vec<Killed>,
}

impl Scene {
    fn hosts(&self) -> [&Host; 3] {
        [self.cluster.vm1(), self.cluster.vm2(), self.cluster.vm3()]
    }

    /// Starts one more and waits until it is healthy.
    fn start(&mut self) -> Result<()> {
        let name = format!("web{}", self.started);
        let host = self.hosts()[self.started % 3].clone();
        self.replicas.push_back(Backend::start(&host, &name)?);
        self.started += 1;
        within(CONVERGES, &format!("{name} is healthy"), || {
            ensure!(field(&self.cluster.endpoint(&name)?, "health") == "healthy");
            Ok(())
        })
    }

    /// Starts one more and drains the first. No request of wrk's fails.
    fn drained(&mut self) -> Result<String> {
        let urls = self.cluster.urls(80);
        let wrks = Wrks::start(&self.client, &urls)?;
        self.start()?;
        let mut old = self.replicas.pop_front().context("no replica")?;
        let began = Instant::now();
        old.drain().with_context(|| old.replica.name().to_owned())?;
        let took = began.elapsed();
        wrks.none_hangs(wrk::PATIENCE)?;
        let count = wrks.stop()?;
        count.none_failed()?;
        Ok(format!("{} drained in {took:.1?}; wrk {count}", old.replica.name()))
    }

    /// Kills the first and starts one more.
    fn killed(&mut self) -> Result<String> {
        let mut old = self.replicas.pop_front().context("no replica")?;
        let (name, at) = (old.replica.name().to_owned(), Instant::now());
        old.kill()?;
        within(CONVERGES, &format!("{name} is gone"), || {
            ensure!(self.cluster.endpoint(&name).is_err(), "listed");
            Ok(())
        })?;
        let known = Instant::now();
        self.killed.push(Killed { name: name.clone(), at, known });
        self.start()?;
        Ok(format!("{name} killed, gone after {:.1?}", known - at))
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[test]
fn replaced_without_a_failed_connection() {
    scenario("replace", |lab| {
        let count = number("MESH_REPLACEMENTS").and_then(|count| u32::try_from(count).ok()).unwrap_or(SHORT);
        let seed = number("MESH_SEED").unwrap_or_else(rand::random);
        println!("{count} replacements; MESH_SEED={seed} repeats them");
        let mut rng = StdRng::seed_from_u64(seed);
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        Backend::service(&cluster)?;
        let mut scene = Scene { cluster, client, replicas: VecDeque::new(), started: 0, killed: Vec::new() };
        (0..REPLICAS).try_for_each(|_| scene.start())?;

        let [web, datagrams] = Backend::places(&scene.hosts());
        let visits = Visits::start(&scene.client, &web)?;
        let flows = Flows::start(&scene.client, &datagrams)?;
        for round in 1..=count {
            // Every run has one of each kind.
            let kill = round == 2 || (round > 2 && rng.random_bool(0.25));
            let place = rng.random_range(0..REPLICAS);
            scene.replicas.rotate_left(place);
            let what = format!("replacement {round} of {count}, seed {seed}");
            let told = if kill { scene.killed() } else { scene.drained() };
            println!("{what}: {}", told.with_context(|| what.clone())?);
        }
        flows.go_on(100)?;
        let (visits, flows) = (visits.stop()?, flows.stop()?);
        let slowest = visits.slowest(|_| true);
        let found: Duration =
            scene.killed.iter().map(|killed| killed.known - killed.at).max().unwrap_or_default();
        println!(
            "{visits}, the longest wait {slowest:.1?}; {flows}; killed: {}, gone after {found:.1?} at most",
            scene.killed.len()
        );
        visits.none_failed_but(|visit| scene.killed.iter().any(|killed| killed.was_met_by(visit)))?;
        flows.none_failed()
    });
}
