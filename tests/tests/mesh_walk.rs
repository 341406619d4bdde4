//! Steps 3 to 7 of the walk-through under constant load: by wrk, by visitors that know whom they met, and by datagrams.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::Machine;
use mesh_tests::{
    Backend, CONVERGES, Cluster, FlowCount, Flows, Host, Killed, Lab, VisitCount, Visits, WrkCount, Wrks,
    scenario, within, wrk,
};

struct Walk {
    cluster: Cluster,
    client: Machine,
}

/// All loads, on some hosts.
struct Loads {
    wrks: Wrks,
    visits: Visits,
    flows: Flows,
}

/// What became of them.
struct Counts {
    wrks: WrkCount,
    visits: VisitCount,
    flows: FlowCount,
}

impl Walk {
    fn new(lab: &Lab) -> Result<Self> {
        let walk = Self { cluster: Cluster::three(lab)?, client: lab.client("client")? };
        Backend::service(&walk.cluster)?;
        Ok(walk)
    }

    fn hosts(&self) -> [&Host; 3] {
        [self.cluster.vm1(), self.cluster.vm2(), self.cluster.vm3()]
    }

    /// The loads on these hosts, under which something happens; what became of them.
    fn under_load(&self, hosts: &[&Host], happen: impl FnOnce() -> Result<()>) -> Result<Counts> {
        let [web, datagrams]: [Vec<SocketAddr>; 2] = Backend::places(hosts);
        let urls: Vec<String> = web.iter().map(|place| format!("http://{place}/")).collect();
        let loads = Loads {
            wrks: Wrks::start(&self.client, &urls)?,
            visits: Visits::start(&self.client, &web)?,
            flows: Flows::start(&self.client, &datagrams)?,
        };
        happen()?;
        loads.stop()
    }

    /// Waits until each of these hosts leads to every one of these replicas, and to no other.
    fn reach(&self, hosts: &[&Host], replicas: &[&str]) -> Result<()> {
        hosts.iter().try_for_each(|host| {
            within(CONVERGES, &format!("{} leads to {replicas:?}", host.name()), || {
                let answers = self.client.answers(&format!("http://{}/", host.ip()), 8 * replicas.len())?;
                ensure!(answers.keys().eq(replicas), "{answers:?}");
                Ok(())
            })
        })
    }
}

impl Loads {
    fn stop(self) -> Result<Counts> {
        self.flows.go_on(100)?;
        self.wrks.none_hangs(wrk::PATIENCE)?;
        Ok(Counts { wrks: self.wrks.stop()?, visits: self.visits.stop()?, flows: self.flows.stop()? })
    }
}

impl Counts {
    fn tell(&self, step: &str) {
        println!("{step}: wrk {}; {}; {}", self.wrks, self.visits, self.flows);
    }

    /// Nothing at all failed.
    fn none_failed(&self, step: &str) -> Result<()> {
        self.tell(step);
        self.wrks.none_failed().with_context(|| step.to_owned())?;
        self.visits.none_failed_but(|_| false).with_context(|| step.to_owned())?;
        self.flows.none_failed().with_context(|| step.to_owned())
    }
}

#[test]
fn steps_3_to_7_without_a_failed_request() {
    scenario("walk", |lab| {
        let walk = Walk::new(lab)?;
        let (cluster, all) = (&walk.cluster, walk.hosts());
        let [vm1, vm2, vm3] = all;
        let web1 = Backend::start(vm1, "web1")?;
        let web2 = Backend::start(vm2, "web2")?;
        cluster.endpoints("web", "2/2")?;
        cluster.answer_in_turn(&walk.client, 80, &["web1", "web2"])?;

        let step = walk.under_load(&all, || walk.reach(&all, &["web1", "web2"]))?;
        step.none_failed("step 3, two replicas")?;

        let mut others = [web2, Backend::start(vm3, "web3")?];
        let step = walk.under_load(&all, || {
            walk.reach(&all, &["web1", "web2", "web3"])?;
            others.iter_mut().try_for_each(Backend::drain)?;
            walk.reach(&all, &["web1"])
        })?;
        step.none_failed("step 4, up to three and down to one")?;

        others.iter_mut().try_for_each(Backend::restart)?;
        cluster.endpoints("web", "3/3")?;
        killed(&walk, &mut others[0])?;
        cut_off(&walk)?;
        replaced(&walk, [web1].into_iter().chain(others).collect())
    });
}

/// Step 5. Who is connected to the replica when it is killed can't be helped, and nobody else notices.
fn killed(walk: &Walk, victim: &mut Backend) -> Result<()> {
    let all = walk.hosts();
    let mut killed = None;
    let step = walk.under_load(&all, || {
        walk.reach(&all, &["web1", "web2", "web3"])?;
        let at = Instant::now();
        victim.kill()?;
        walk.cluster.endpoints("web", "2/2")?;
        killed = Some(Killed { name: "web2".to_owned(), at, known: Instant::now() });
        walk.reach(&all, &["web1", "web3"])
    })?;
    step.tell("step 5, a killed replica");
    let killed = killed.context("not killed")?;
    step.visits.none_failed_but(|visit| killed.was_met_by(visit))?;
    step.flows.none_failed()?;
    // Whom wrk's connections were to it does not say.
    ensure!(step.wrks.timeouts == 0 && step.wrks.refusals == 0, "{}", step.wrks);

    let step = walk.under_load(&all, || {
        victim.restart()?;
        walk.cluster.endpoints("web", "3/3")?;
        walk.reach(&all, &["web1", "web2", "web3"])
    })?;
    step.none_failed("step 5, it comes back")
}

/// Step 6. What was sent to the host meanwhile is answered when it returns.
fn cut_off(walk: &Walk) -> Result<()> {
    let [vm1, vm2, vm3] = walk.hosts();
    let step = walk.under_load(&[vm1, vm3], || {
        let cut = vm2.cut()?;
        walk.reach(&[vm1, vm3], &["web1", "web3"])?;
        cut.heal()?;
        walk.reach(&walk.hosts(), &["web1", "web2", "web3"])
    })?;
    step.none_failed("step 6, a host cut off")
}

/// Step 7.
fn replaced(walk: &Walk, first: Vec<Backend>) -> Result<()> {
    let all = walk.hosts();
    let mut second = Vec::new();
    let step = walk.under_load(&all, || {
        for ((host, mut old), name) in all.iter().zip(first).zip(["new1", "new2", "new3"]) {
            second.push(Backend::start(host, name)?);
            walk.cluster.endpoints("web", "4/4")?;
            old.drain()?;
        }
        walk.reach(&all, &["new1", "new2", "new3"])
    })?;
    step.none_failed("step 7, replaced one by one")
}
