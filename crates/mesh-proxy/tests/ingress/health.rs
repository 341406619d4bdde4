//! Health checks against replicas that change their mind.

use crate::clients::Message;
use crate::model::{self, ME};
use crate::rig::{DEADLINE, Places, TARGET, eventually, overlay, refusing};
use crate::upstream::Replica;
use mesh_model::{EndpointId, Health, HealthKind, Service, Snapshot};
use mesh_proxy::{Error, HealthChecks, Report};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

struct Ward {
    snapshots: watch::Sender<Arc<Snapshot>>,
    reports: mpsc::Receiver<Report>,
    resend: Arc<Notify>,
    places: Places,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Ward {
    fn start(snapshot: Snapshot, replicas: &[std::net::SocketAddr]) -> Self {
        let places = Places::default();
        for (i, real) in (1..).zip(replicas) {
            places.put(overlay(i), *real);
        }
        let (snapshots, snapshots_rx) = watch::channel(Arc::new(snapshot));
        let (reports_tx, reports) = mpsc::channel(1);
        let resend = Arc::new(Notify::new());
        let cancel = CancellationToken::new();
        let connect = Arc::new(places.clone());
        let checks = HealthChecks::new(snapshots_rx, ME, connect, reports_tx, resend.clone());
        let task = tokio::spawn(checks.run(cancel.clone()));
        Self { snapshots, reports, resend, places, cancel, task }
    }

    async fn next(&mut self) -> (u64, Health) {
        let report = timeout(DEADLINE, self.reports.recv()).await.expect("no report").expect("it ended");
        (report.0.bits(), report.1)
    }

    /// Nothing is reported for long enough that many checks have run.
    async fn silent(&mut self) {
        let report = timeout(Duration::from_millis(300), self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshots.send_modify(|snapshot| change(Arc::make_mut(snapshot)));
    }
}

fn checked(kind: HealthKind, replicas: u64) -> Snapshot {
    let mut service = model::service(1, vec![model::port(80, TARGET)]);
    service.health = Some(model::check(kind, 20));
    let endpoints = (1..=replicas).map(|id| model::endpoint(id, 1, ME, overlay(id))).collect();
    model::snapshot(vec![service], endpoints)
}

fn service(snapshot: &mut Snapshot) -> &mut Service {
    Arc::make_mut(snapshot.services.values_mut().next().unwrap())
}

async fn answering(status: Arc<AtomicU16>) -> Replica {
    Replica::answering(move |request: &Message| {
        assert_eq!(request.fields("host"), ["service_1"]);
        let status = status.load(Ordering::SeqCst);
        format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_fails_leaves_and_returns_and_only_changes_are_told() {
    let status = Arc::new(AtomicU16::new(200));
    let replica = answering(status.clone()).await;
    let mut ward = Ward::start(checked(HealthKind::Http("/ready".into()), 1), &[replica.addr]);
    assert_eq!(ward.next().await, (1, Health::Healthy));
    ward.silent().await;
    assert!(replica.seen()[0].head.starts_with("GET /ready HTTP/1.1\r\n"));
    status.store(500, Ordering::SeqCst);
    assert_eq!(ward.next().await, (1, Health::Unhealthy));
    status.store(302, Ordering::SeqCst);
    assert_eq!(ward.next().await, (1, Health::Healthy));
    ward.cancel.cancel();
    ward.task.await.unwrap().unwrap();
    drop(replica);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_answers_is_unhealthy_and_so_is_one_that_is_too_slow() {
    let mute = Replica::scripted(|mut wire, _| async move { drop(wire.rest().await) }).await;
    let mut snapshot = checked(HealthKind::Http("/".into()), 2);
    service(&mut snapshot).health.as_mut().unwrap().timeout_ms = 50;
    let mut ward = Ward::start(snapshot, &[refusing(), mute.addr]);
    let mut seen = [ward.next().await, ward.next().await];
    seen.sort_unstable_by_key(|report| report.0);
    assert_eq!(seen, [(1, Health::Unhealthy), (2, Health::Unhealthy)]);
    // Nothing of HTTP is asked for by a TCP check.
    ward.update(|snapshot| service(snapshot).health.as_mut().unwrap().kind = HealthKind::Tcp);
    while ward.next().await != (2, Health::Healthy) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn all_verdicts_are_told_again_when_asked_for() {
    let replica = Replica::named("1").await;
    let mut ward = Ward::start(checked(HealthKind::Tcp, 2), &[replica.addr, replica.addr]);
    for _ in 0..2 {
        let mut seen = [ward.next().await.0, ward.next().await.0];
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
        ward.silent().await;
        ward.resend.notify_one();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_goes_or_changes_leaves_the_others_alone() {
    let replicas = [Replica::named("1").await, Replica::named("2").await];
    let mut snapshot = checked(HealthKind::Tcp, 2);
    // Once a minute: a check that runs again was restarted.
    service(&mut snapshot).health.as_mut().unwrap().interval_ms = 60_000;
    let mut ward = Ward::start(snapshot, &replicas.each_ref().map(|r| r.addr));
    let (first, second) = (ward.next().await, ward.next().await);
    assert_ne!(first.0, second.0);
    ward.places.put(overlay(3), replicas[1].addr);
    ward.update(|snapshot| {
        snapshot.endpoints.remove(&EndpointId::from_bits(2));
        let third = model::endpoint(3, 1, ME, overlay(3));
        snapshot.endpoints.insert(third.id, Arc::new(third));
    });
    assert_eq!(ward.next().await, (3, Health::Healthy));
    // The kernel accepts before the replica does.
    eventually(|| async { replicas[1].connections() }, |count| *count == 2).await;
    assert_eq!(replicas[0].connections(), 1);
    ward.resend.notify_one();
    assert_eq!((ward.next().await.0, ward.next().await.0), (1, 3), "the one that went is told of no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_before_a_restart_holds_until_enough_checks_say_otherwise() {
    let status = Arc::new(AtomicU16::new(500));
    let replica = answering(status.clone()).await;
    let mut snapshot = checked(HealthKind::Http("/".into()), 1);
    service(&mut snapshot).health.as_mut().unwrap().fall = 1_000_000;
    model::set_health(&mut snapshot, 1, Health::Healthy);
    let mut ward = Ward::start(snapshot, &[replica.addr]);
    ward.silent().await;
    status.store(200, Ordering::SeqCst);
    assert_eq!(ward.next().await, (1, Health::Healthy), "confirmed, for a manager that may not know");
}
