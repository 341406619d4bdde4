//! One manager with 1,000 agents, 10 networks and 10,000 endpoints: memory, bytes and CPU of a change, the time until
//! the last agent has it, and what it costs when all agents come back at once.
//!
//! The manager is a real `meshd`. The agents are simulated, but for the manager what agents are: each joins with a
//! token, holds a connection of its own over mutual TLS, decodes its stream and reports what it has. They share the
//! machine's processors with the manager. Needs root.
//!
//! `cargo build --release --workspace --bins && cargo bench --bench scale`
//!
//! `BENCH_AGENTS` and `BENCH_NETWORKS` change the size; the aims are held to at the size of above only.

mod fleet;
mod manager;
mod report;

use anyhow::{Context, Result, ensure};
use fleet::{Fleet, Kind};
use manager::Manager;
use mesh_api::{Init, JoinTokenRequest};
use mesh_model::{NetworkSpec, Role, ServiceSpec, ServiceUpdate};
use mesh_tests::Lab;
use report::{Report, Row};
use std::{
    env,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};
use tokio::task::JoinSet;

/// On each node, all on one network: each network is needed by an equal part of the nodes.
const ENDPOINTS: usize = 10;
const CHANGES: usize = 200;
/// Longer than a manager waits for an agent that does not read.
const UNREAD: Duration = Duration::from_secs(15);

/// How large the cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Size {
    agents: usize,
    networks: usize,
}

impl Size {
    const USUAL: Self = Self { agents: 1000, networks: 10 };

    fn asked_for() -> Result<Self> {
        let number = |name, usual| env::var(name).map_or(Ok(usual), |number| number.parse());
        let Self { agents, networks } = Self::USUAL;
        Ok(Self { agents: number("BENCH_AGENTS", agents)?, networks: number("BENCH_NETWORKS", networks)? })
    }
}

/// The whole run may take so long.
const PATIENCE: Duration = Duration::from_secs(1200);

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().collect();
    if let [_, inside, meshd, address] = arguments.as_slice()
        && inside == "inside"
    {
        raise_file_limit()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(measure(meshd, address.parse()?));
    }
    let lab = Lab::new("scale")?;
    let host = lab.host("vm1")?;
    let own = env::current_exe()?.to_string_lossy().into_owned();
    let line = [own.as_str(), "inside", &mesh_tests::host::binary("meshd")?, &host.ip().to_string()];
    let mut inside = host.spawn_into(&line, Stdio::inherit(), Stdio::inherit())?;
    ensure!(inside.wait(PATIENCE)?.success(), "the bench failed");
    Ok(())
}

fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

async fn measure(meshd: &str, address: IpAddr) -> Result<()> {
    let Size { agents, networks } = Size::asked_for()?;
    let mut manager = Manager::start(meshd, "/run/lab/vm1").await?;
    let api = manager.api();
    let init = Init { advertise: SocketAddr::new(address, 7443), ..init()? };
    api.cluster_init(&init).await?;
    let token = JoinTokenRequest { role: Role::Worker, rotate: false, ttl_ms: None };
    let token = api.join_token(&token).await?.token;
    for number in 0..networks {
        let spec = NetworkSpec {
            subnets: vec![format!("10.{}.0.0/16", 130 + number).parse()?],
            ..NetworkSpec::named(fleet::network(number).parse()?)
        };
        api.network_create(&spec).await?;
        api.service_create(&service(number)?).await?;
    }
    let mut report = Report::default();

    let mut row = Row::begin(&format!("{agents} joins, 32 at a time"), &manager, 0)?;
    let fleet = Fleet::join(init.advertise, &token, agents).await?;
    report.phase(&row.end(&manager, fleet.bytes())?);

    row = Row::begin(&format!("{agents} agents connect, nobody has anything"), &manager, fleet.bytes())?;
    fleet.begin();
    fleet.all_back().await?;
    report.phase(&row.end(&manager, fleet.bytes())?);

    row = Row::begin(
        &format!("{} endpoints attached, 64 at a time", agents * ENDPOINTS),
        &manager,
        fleet.bytes(),
    )?;
    fleet.attach(networks, ENDPOINTS).await?;
    report.phase(&row.end(&manager, fleet.bytes())?);

    tokio::time::sleep(Duration::from_secs(5)).await;
    row = Row::begin(&format!("at rest for 10 s: {agents} connections kept alive"), &manager, fleet.bytes())?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    report.phase(&row.end(&manager, fleet.bytes())?);

    let mut changes = Vec::new();
    row = Row::begin("200 changes that all need", &manager, fleet.bytes())?;
    for number in 0..CHANGES {
        let update =
            ServiceUpdate { drain_timeout_ms: Some(20_000 + number as u64), ..ServiceUpdate::default() };
        let mark = fleet.mark();
        api.service_update(&fleet::network(0), &update).await?;
        changes.push(fleet.told(&mark, Kind::Service, agents).await?);
    }
    report.phase(&row.end(&manager, fleet.bytes())?);
    report.changes(&format!("all {agents} agents need"), &changes);

    changes.clear();
    row = Row::begin("200 changes on one network", &manager, fleet.bytes())?;
    for number in 0..CHANGES {
        let mark = fleet.mark();
        fleet.toggle_endpoint(number / 2 % agents, networks).await?;
        changes.push(fleet.told(&mark, Kind::Endpoint, agents / networks).await?);
    }
    report.phase(&row.end(&manager, fleet.bytes())?);
    report.changes(&format!("{} of {agents} agents need", agents / networks), &changes);

    for (resume, with) in [(true, "knowing what they had"), (false, "knowing nothing")] {
        fleet.resume(resume);
        row = Row::begin(
            &format!("all connections cut, all agents come back {with}"),
            &manager,
            fleet.bytes(),
        )?;
        fleet.cut();
        fleet.all_back().await?;
        report.storm(&row.end(&manager, fleet.bytes())?);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    for (resume, with) in [(true, "knowing what they had"), (false, "knowing nothing")] {
        fleet.resume(resume);
        // What the agents of other networks have is of before the last change.
        fleet.toggle_endpoint(0, networks).await?;
        fleet.expect_return();
        let mark = fleet.mark();
        manager.restart().await?;
        row = Row::begin_anew(
            &format!("meshd killed and started, all agents come back {with}"),
            mark.at,
            mark.bytes,
        );
        fleet.all_back().await?;
        report.storm(&row.end(&manager, fleet.bytes())?);
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    unread(&manager, &fleet, &mut report).await?;
    report.print(&fleet);
    if Size::asked_for()? == Size::USUAL { report.aims() } else { Ok(()) }
}

/// Agents with little room for what they don't read: the manager has to wait for each of them, lets all of them go, and
/// tells them what they missed when they are back.
async fn unread(manager: &Manager, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let api = manager.api();
    fleet.resume(true);
    fleet.narrow(true);
    fleet.cut();
    fleet.all_back().await?;
    fleet.pause(true);
    let mut row = Row::begin("1,000 changes that all need, while no agent reads", manager, fleet.bytes())?;
    let mut updates = JoinSet::new();
    for number in 0..1000 {
        // Nobody confirms: not waited for, or each would take seconds.
        let update = ServiceUpdate { drain_timeout_ms: Some(30_000 + number), ..ServiceUpdate::default() };
        let api = api.clone();
        updates.spawn(async move { api.service_update(&fleet::network(0), &update).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while let Some(update) = updates.join_next().await {
        update??;
    }
    tokio::time::sleep(UNREAD).await;
    report.phase(&row.end(manager, fleet.bytes())?);

    // Who is still on its old connection never counts as back.
    fleet.expect_return();
    row = Row::begin("they read on: all were let go, and come back", manager, fleet.bytes())?;
    fleet.pause(false);
    fleet.all_back().await?;
    report.phase(&row.end(manager, fleet.bytes())?);
    Ok(())
}

fn init() -> Result<Init> {
    serde_json::from_value(serde_json::json!({ "advertise": "192.0.2.1:7443", "data_path_port": 4789, "cert_expiry_s": 7_776_000 }))
        .context("the form of an init request")
}

fn service(number: usize) -> Result<ServiceSpec> {
    let name = fleet::network(number);
    Ok(serde_json::from_value(
        serde_json::json!({ "name": name, "networks": [name], "drain_timeout_ms": 10_000 }),
    )?)
}
