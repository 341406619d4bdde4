//! The CNI plugin, called as a runtime calls it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::host::{Host, binary};
use crate::process::Outcome;

const MESH_CNI: &str = "mesh-cni";
/// Where Debian has other plugins (package containernetworking-plugins).
const OTHERS: &str = "/usr/lib/cni";

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A network configuration on one host, as the runtime there derives it for the plugin.
#[derive(Debug, Clone)]
pub struct Plugin {
    host: Host,
    /// What goes to standard input.
    pub config: Value,
}

/// What the plugin said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub outcome: Outcome,
    /// Its standard output; null if there was none.
    pub json: Value,
}

impl Plugin {
    /// The configuration of a network in a version of the protocol.
    pub fn new(host: &Host, network: &str, version: &str) -> Self {
        let config = json!({
            "cniVersion": version, "name": network, "type": MESH_CNI, "socket": host.socket(),
        });
        Self { host: host.clone(), config }
    }

    /// The same with another value of a key. Another `type` is another plugin.
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut plugin = self.clone();
        plugin.config[key] = value;
        plugin
    }

    /// One command for an interface `eth0` of a container that has the namespace of the same name.
    pub fn call(&self, command: &str, container: &str) -> Result<Said> {
        self.call_with(command, container, &[])
    }

    /// The same with other or more variables.
    pub fn call_with(&self, command: &str, container: &str, more: &[(&str, &str)]) -> Result<Said> {
        self.call_by(&[], command, container, more)
    }

    /// As [`Plugin::call`], killed (SIGKILL) on its way, unless it is faster.
    pub fn killed(&self, command: &str, container: &str, after: Duration) -> Result<()> {
        let after = after.as_secs_f64().to_string();
        self.call_by(&["timeout", "--signal=KILL", &after], command, container, &[]).map(drop)
    }

    fn call_by(
        &self,
        starter: &[&str],
        command: &str,
        container: &str,
        more: &[(&str, &str)],
    ) -> Result<Said> {
        let netns = format!("CNI_NETNS=/run/netns/{container}");
        let (id, command) = (format!("CNI_CONTAINERID={container}"), format!("CNI_COMMAND={command}"));
        let more: Vec<String> = more.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut variables = vec![&*netns, &id, &command, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"];
        variables.extend(more.iter().map(String::as_str));
        self.run_by(starter, &variables, &self.config.to_string())
    }

    /// The plugin with these variables and nothing else, and any text as its standard input.
    pub fn run(&self, variables: &[&str], stdin: &str) -> Result<Said> {
        self.run_by(&[], variables, stdin)
    }

    /// As [`Plugin::run`], by a command that starts it.
    fn run_by(&self, starter: &[&str], variables: &[&str], stdin: &str) -> Result<Said> {
        let path = format!("/run/lab/cni.{}", CALLS.fetch_add(1, Ordering::Relaxed));
        fs::write(self.host.file(&path), stdin)?;
        let plugin = match self.config["type"].as_str() {
            Some(other) if other != MESH_CNI => format!("{OTHERS}/{other}"),
            _ => binary(MESH_CNI)?,
        };
        let mut line = vec!["bash", "-c", "exec \"${@:2}\" <\"$1\"", "cni", path.as_str()];
        line.extend(starter);
        line.extend(["env", "--ignore-environment"]);
        line.extend(variables);
        line.push(&plugin);
        let outcome = self.host.output(&line);
        fs::remove_file(self.host.file(&path))?;
        let json = match outcome.stdout.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("no JSON: {outcome:?}"))?,
        };
        Ok(Said { outcome, json })
    }
}

impl Said {
    /// The result of a command that must have worked.
    pub fn ok(&self) -> Result<&Value> {
        ensure!(self.outcome.code == Some(0), "{:?}", self.outcome);
        ensure!(self.outcome.stderr.is_empty(), "{:?}", self.outcome);
        Ok(&self.json)
    }

    /// The command failed with a code of the specification, and says this in `msg` or `details`.
    pub fn failed(&self, code: u64, text: &str) -> Result<()> {
        ensure!(self.outcome.code.is_some_and(|code| code != 0), "it worked: {:?}", self.outcome);
        ensure!(self.json["code"] == code, "expected code {code}: {:?}", self.outcome);
        ensure!(self.json["cniVersion"].is_string() && self.json["msg"].is_string(), "{:?}", self.outcome);
        ensure!(self.json.to_string().contains(text), "expected `{text}`: {:?}", self.outcome);
        Ok(())
    }
}
