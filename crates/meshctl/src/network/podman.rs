//! Containers of Podman, by their names.
//!
//! `podman inspect` on this host says where a container is: Podman has no daemon to ask, and what it keeps on the disk is its
//! own. meshd runs no programs; meshctl does it for its user, with the user's storage.

use anyhow::{Context, bail};
use mesh_model::{Labels, Name, Target};
use serde::Deserialize;
use std::{collections::BTreeMap, io, process::Command};

/// What Podman says of a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    id: String,
    name: String,
    state: State,
    host_config: HostConfig,
    #[serde(default)]
    config: Config,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

impl Container {
    /// Asks Podman; `None` if it knows none of this name.
    pub(super) fn find(name: &str) -> anyhow::Result<Option<Self>> {
        let output = Command::new("podman").args(["container", "inspect", "--", name]).output();
        let output = output.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("podman: targets need podman, which is not installed"),
            _ => anyhow::anyhow!("cannot run podman: {error}"),
        })?;
        if output.status.success() {
            return Ok(Some(Self::parse(&output.stdout)?));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("no such container") {
            return Ok(None);
        }
        bail!("podman does not tell of '{name}': {}", said.trim());
    }

    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let containers: Vec<Self> =
            serde_json::from_slice(text).context("what podman inspect says is not understood")?;
        containers.into_iter().next().context("podman inspect says nothing")
    }

    /// What to connect: its first process, with which the endpoint ends.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        let name = &self.name;
        if !self.state.running || self.state.pid <= 0 {
            bail!("container '{name}' is not running: start it first (podman start {name})");
        }
        if self.host_config.network_mode == "host" {
            bail!("container '{name}' has the host's network: run it without --network host");
        }
        Ok(Target::Pid(self.state.pid))
    }

    /// What its endpoint is found again by, also when it has ended.
    pub(super) fn owner(&self) -> String {
        format!("podman:{}", self.id)
    }

    /// What the endpoint is called if nobody else is.
    pub(super) fn preferred_name(&self) -> Option<Name> {
        self.name.parse().ok()
    }

    /// What its endpoint is, unless the command says otherwise.
    pub(super) fn labels(&self) -> anyhow::Result<Labels> {
        let none = BTreeMap::new();
        Labels::read(self.config.labels.as_ref().unwrap_or(&none))
            .map_err(|reason| anyhow::anyhow!("container '{}': {reason}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(more: &str) -> Container {
        let text = format!(r#"[{{"Id":"3fa9","Name":"web1","Other":[],{more}}}]"#);
        Container::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_running_container_is_where_its_process_is_and_says_what_it_is() {
        let labels = r#"{"mesh.service":"web","mesh.name":""}"#;
        let state = r#""State":{"Running":true,"Pid":4711},"HostConfig":{"NetworkMode":"none"}"#;
        let found = container(&format!(r#"{state},"Config":{{"Labels":{labels}}}"#));
        assert_eq!(found.target().unwrap(), Target::Pid(4711));
        assert_eq!(found.owner(), "podman:3fa9");
        assert_eq!(found.labels().unwrap(), Labels { service: Some("web".to_owned()), ..Labels::default() });
        let bare = container(&format!(r#"{state},"Config":{{"Labels":null}}"#));
        assert_eq!(bare.labels().unwrap(), Labels::default());
    }

    #[test]
    fn what_has_no_network_of_its_own_is_refused() {
        let ended = r#""State":{"Running":false,"Pid":0},"HostConfig":{"NetworkMode":"bridge"}"#;
        assert!(container(ended).target().unwrap_err().to_string().contains("not running"));
        let host = r#""State":{"Running":true,"Pid":7},"HostConfig":{"NetworkMode":"host"}"#;
        assert!(container(host).target().unwrap_err().to_string().contains("host's network"));
    }
}
