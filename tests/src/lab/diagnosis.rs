//! What a failed test prints.

use std::fs;

use crate::host::Host;

/// What to look at in each host. The networks' own namespaces are found in meshd's run directory, where they are
/// kept by bind mount.
const LOOK: &str = r#"
look() {
  ip -brief link; ip -brief address; ip rule; ip route show table all type unicast; ip -6 route show type unicast
  ip neighbour; bridge fdb show | grep -v -e ^33:33: -e ^01:00:5e:; nft list ruleset
}
echo "--- host"; look
find "$1" -type f -o -type s | head -50
for net in $(findmnt --noheadings --raw --output TARGET,FSTYPE | awk -v run="$1/" '$2 == "nsfs" && index($1, run) == 1 {print $1}'); do
  echo "--- $net"; nsenter --net="$net" bash -c "$(declare -f look); look"
done
"#;

/// The last lines of a log that are printed.
const LOG_LINES: usize = 80;

/// Prints links, addresses, routes, FDB, neighbours, nftables and the end of meshd's log for each host, and how to
/// enter it. Goes to standard error, which the test runner keeps with the failed test.
pub(crate) fn print(lab: &str, hosts: &[Host]) {
    for host in hosts {
        eprintln!("\n===== lab {lab}, host {}", host.name());
        eprintln!("enter (while it runs): nsenter {} -- bash", host.nsenter_args().join(" "));
        let looked = host.output(&["bash", "-c", LOOK, "bash", &host.run_dir()]);
        eprintln!("{}{}", looked.stdout, looked.stderr);
        eprintln!("--- meshd's log, the last {LOG_LINES} lines");
        let log = fs::read_to_string(host.file(host.log_path())).unwrap_or_else(|err| err.to_string());
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
            eprintln!("{line}");
        }
    }
}
