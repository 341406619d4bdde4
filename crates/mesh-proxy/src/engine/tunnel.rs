//! After 101: bytes both ways, whatever they mean.

use super::access::Record;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{io, time::Duration};
use tokio::{io::copy_bidirectional, select, time::sleep};
use tokio_util::sync::CancellationToken;

/// Relays until either end has closed, or until `drain` after `stop`.
pub(super) async fn run(
    client: OnUpgrade,
    backend: OnUpgrade,
    stop: CancellationToken,
    drain: Duration,
    record: Record,
) {
    let cut = async {
        stop.cancelled().await;
        sleep(drain).await;
    };
    let ended = select! {
        ended = relay(client, backend) => ended,
        () = cut => Ok(()),
    };
    if let Err(err) = ended {
        tracing::debug!(%err, "tunnel ended");
    }
    drop(record);
}

async fn relay(client: OnUpgrade, backend: OnUpgrade) -> io::Result<()> {
    let (client, backend) = tokio::try_join!(client, backend).map_err(io::Error::other)?;
    copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await.map(drop)
}
