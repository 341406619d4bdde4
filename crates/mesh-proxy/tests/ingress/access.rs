//! The access log, as a subscriber sees it.

use crate::clients::Wire;
use crate::rig::{Rig, eventually, refusing};
use crate::upstream::Replica;
use mesh_proxy::Settings;
use std::{
    io,
    sync::{Arc, Mutex},
};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The line about the request for a path, once it is there.
    async fn about(&self, path: &str) -> String {
        let find = || async {
            let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            all.lines().find(|line| line.contains(path)).map(str::to_owned)
        };
        eventually(find, Option::is_some).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_leaves_one_line_however_it_ended() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("access=debug")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let replica = Replica::named("one").await;
    let rig = Rig::start(&[refusing(), replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let client = wire.stream.local_addr().unwrap();
    wire.get("/log-whole").await;
    let line = lines.about("/log-whole").await;
    for part in [
        &format!("client={client}"),
        "service=\"service_1\"",
        "backend=10.1.0.2:8080",
        "retries=1",
        "status=200",
        "bytes=3",
        "end=\"complete\"",
        "GET /log-whole HTTP/1.1",
    ] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }

    let mute = Replica::scripted(|mut wire, _| async move { drop(wire.rest().await) }).await;
    let rig = Rig::start(&[mute.addr], Settings::default());
    let mut gone = Wire::connect(rig.addr).await;
    gone.send("GET /log-gone HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually(|| async { mute.connections() }, |count| *count == 1).await;
    drop(gone);
    assert!(lines.about("/log-gone").await.contains("end=\"client gone\""));
}
