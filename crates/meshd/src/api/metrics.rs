//! Metrics in Prometheus' text format (version 0.0.4): at the local socket, and for scrapers at `--metrics-listen`.

use super::{Failure, traffic};
use crate::daemon::Daemon;
use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_api::{CountView, TrafficView};
use mesh_net::survey::{self, Usage};
use std::{fmt::Write, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

/// Binds the address that scrapers ask.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address} (--metrics-listen)"))
}

/// Serves `/metrics` and nothing else until cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    daemon: Arc<Daemon>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(metrics)).with_state(daemon);
    let stop = cancel.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        served = server => served.context("the listener of metrics failed"),
        // Whoever scrapes will ask again.
        () = cancel.cancelled() => Ok(()),
    }
}

pub(super) async fn metrics(State(daemon): State<Arc<Daemon>>) -> Result<Response, Failure> {
    let member = daemon.member()?;
    let snapshot = member.agent.snapshot();
    let traffic = traffic::of_this_node(&member, &snapshot).await?;
    let degraded = member.agent.applied.borrow().ports.len();
    let conntrack = spawn_blocking(survey::conntrack).await.ok().flatten();
    let text = text(&traffic, degraded, conntrack.as_ref());
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// What the kernel led and what was relayed are counted from different moments on, and so are series of their own.
const PATHS: [&str; 2] = ["kernel", "relay"];

fn text(traffic: &[Vec<TrafficView>; 2], degraded: usize, conntrack: Option<&Usage>) -> String {
    let mut text = String::new();
    let traffic: Vec<(&str, &TrafficView)> =
        PATHS.into_iter().zip(traffic).flat_map(|(path, all)| all.iter().map(move |of| (path, of))).collect();
    let connections = |of: &TrafficView| vec![(String::new(), of.connections)];
    let both = |which: fn(CountView) -> u64| {
        move |of: &TrafficView| {
            [("sent", of.sent), ("received", of.received)]
                .map(|(direction, count)| (format!(",direction=\"{direction}\""), which(count)))
                .to_vec()
        }
    };
    let name = "mesh_port_connections_total";
    family(&mut text, name, "counter", "Connections and flows that published ports led to an endpoint.");
    traffic.iter().for_each(|of| samples(&mut text, name, of, connections));
    let name = "mesh_port_packets_total";
    family(
        &mut text,
        name,
        "counter",
        "Packets of those, as the kernel handles them: what it merged is one. Of TCP that is relayed none are known.",
    );
    traffic.iter().for_each(|of| samples(&mut text, name, of, both(|count| count.packets)));
    let name = "mesh_port_bytes_total";
    family(&mut text, name, "counter", "Bytes of those; with their IP headers where the kernel leads.");
    traffic.iter().for_each(|of| samples(&mut text, name, of, both(|count| count.bytes)));
    let mut single = |name: &str, kind: &str, help: &str, value: u64| {
        family(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    };
    let help = "Published ports that this node can't serve: 'meshctl status' names them.";
    single("mesh_ports_degraded", "gauge", help, degraded as u64);
    if let Some(Usage { used, max, losses, .. }) = conntrack {
        single("mesh_conntrack_entries", "gauge", "Connections that the host tracks.", *used);
        single("mesh_conntrack_entries_max", "gauge", "Connections that it can track.", *max);
        let help = "Packets of new connections that there was no room for.";
        single("mesh_conntrack_dropped_total", "counter", help, losses.dropped);
        let help = "Connections that were forgotten to make room.";
        single("mesh_conntrack_forgotten_total", "counter", help, losses.forgotten);
    }
    text
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Names need no escapes: they have no quotes, backslashes or line feeds.
fn samples(
    text: &mut String,
    name: &str,
    (path, of): &(&str, &TrafficView),
    values: impl Fn(&TrafficView) -> Vec<(String, u64)>,
) {
    let published: Vec<String> = of.published.iter().map(u16::to_string).collect();
    for (more, value) in values(of) {
        let _ = writeln!(
            text,
            "{name}{{node=\"{}\",service=\"{}\",protocol=\"{}\",published=\"{}\",target=\"{}\",endpoint=\"{}\",path=\"{path}\"{more}}} {value}",
            of.node,
            of.service,
            of.protocol,
            published.join(","),
            of.target,
            of.endpoint,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::Protocol;
    use mesh_net::survey::Losses;

    #[test]
    fn metrics_are_as_prometheus_reads_them() {
        let led = TrafficView {
            node: "vm1".to_owned(),
            service: "web".to_owned(),
            protocol: Protocol::Tcp,
            published: vec![80, 8080],
            target: 80,
            endpoint: "web1".to_owned(),
            connections: 3,
            sent: CountView { packets: 10, bytes: 1000 },
            received: CountView { packets: 20, bytes: 2000 },
        };
        let traffic = [vec![led.clone()], vec![TrafficView { connections: 1, ..led }]];
        let usage = Usage { used: 5, max: 100, most: None, losses: Losses { dropped: 1, forgotten: 2 } };
        let text = text(&traffic, 1, Some(&usage));
        let of = "node=\"vm1\",service=\"web\",protocol=\"tcp\",published=\"80,8080\",target=\"80\",endpoint=\"web1\"";
        let labels = format!("{of},path=\"kernel\"");
        for line in [
            "# TYPE mesh_port_connections_total counter".to_owned(),
            format!("mesh_port_connections_total{{{labels}}} 3"),
            format!("mesh_port_connections_total{{{of},path=\"relay\"}} 1"),
            format!("mesh_port_packets_total{{{labels},direction=\"sent\"}} 10"),
            format!("mesh_port_bytes_total{{{labels},direction=\"received\"}} 2000"),
            "mesh_ports_degraded 1".to_owned(),
            "mesh_conntrack_forgotten_total 2".to_owned(),
        ] {
            assert!(text.lines().any(|of_text| of_text == line), "{line} in\n{text}");
        }
    }
}
