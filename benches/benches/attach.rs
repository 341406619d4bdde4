//! Attaching a container to a network: from the start of the command to its end, and to the end of the first ping from
//! another node, with three real hosts. Wall time, since it is what a user waits for; needs root.
//!
//! `cargo build --release --bins && cargo bench --bench attach`

use anyhow::{Context, Result};
use mesh_tests::{Cluster, Lab};

const ATTACHMENTS: usize = 20;

/// Prints milliseconds: until meshctl ended, until ping ended, and what a ping costs once everything is there.
const SCRIPT: &str = r#"
ms() { echo $((${EPOCHREALTIME/./} - $1)); }
first() { nsenter --net=/run/netns/prober ping -c1 -W2 -q "$1" >/dev/null; }
start=${EPOCHREALTIME/./}
"$1" network connect --ip "$2" bench "netns:/run/netns/$3" >/dev/null || exit 1
attached=$(ms "$start")
first "$2" || exit 1
pinged=$(ms "$start")
start=${EPOCHREALTIME/./}
first "$2" || exit 1
echo "$attached $pinged $(ms "$start")"
"#;

fn main() -> Result<()> {
    let lab = Lab::new("attach")?;
    let cluster = Cluster::three(&lab)?;
    cluster.vm1().meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "bench"]).ok()?;
    let prober = lab.container("prober")?;
    let warm = lab.container("warm")?;
    cluster.vm2().meshctl(&["network", "connect", "bench", &prober.target()]).ok()?;
    // The network's namespace is there already, as it is for all but a node's first container.
    cluster.vm1().meshctl(&["network", "connect", "bench", &warm.target()]).ok()?;

    let meshctl = mesh_tests::host::binary("meshctl")?;
    let socket = format!("MESH_SOCKET={}", cluster.vm1().socket());
    let mut samples: [Vec<f64>; 3] = Default::default();
    for number in 0..ATTACHMENTS {
        let container = format!("c{number}");
        lab.container(&container)?;
        let address = format!("192.168.100.{}", 100 + number);
        let line = ["env", &socket, "bash", "-c", SCRIPT, "attach", &meshctl, &address, &container];
        let printed = cluster.vm1().output(&line).ok()?;
        for (sample, text) in samples.iter_mut().zip(printed.split(' ')) {
            sample.push(text.parse::<f64>().context("a number of microseconds")? / 1000.0);
        }
    }

    println!("{ATTACHMENTS} attachments, three nodes; milliseconds     min    p50    max");
    let rows = ["meshctl network connect", "to the end of the first ping", "a ping alone, for comparison"];
    for (row, sample) in rows.iter().zip(&mut samples) {
        sample.sort_by(f64::total_cmp);
        let (min, p50, max) = (sample[0], sample[sample.len() / 2], sample[sample.len() - 1]);
        println!("{row:<40}   {min:>6.1} {p50:>6.1} {max:>6.1}");
    }
    Ok(())
}
