//! Clocks that tell another time than the machine's.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::host::{Host, Meshd};

/// Where a lab keeps the time of the one host whose clock is set while it runs.
const FILE: &str = "/run/lab/clock";

/// Debian's package faketime has it in the directory of the architecture.
pub fn libfaketime() -> Result<String> {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    ensure!(Path::new(&path).is_file(), "{path} is missing: install the package faketime");
    Ok(path)
}

/// The clock of a host, as its `meshd` sees it; a lab has one.
#[derive(Debug)]
pub struct Clock(Host);

impl Clock {
    /// It is off by this much: `+60`, `-2d`.
    pub fn of(host: &Host, offset: &str) -> Result<Self> {
        let clock = Self(host.clone());
        clock.set(offset)?;
        Ok(clock)
    }

    /// From now on it is off by this much.
    pub fn set(&self, offset: &str) -> Result<()> {
        Ok(fs::write(self.0.file(FILE), offset)?)
    }

    /// Starts the host's `meshd` under it.
    pub fn meshd(&self) -> Result<Meshd> {
        let settings = [
            format!("LD_PRELOAD={}", libfaketime()?),
            format!("FAKETIME_TIMESTAMP_FILE={FILE}"),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
            "FAKETIME_NO_CACHE=1".to_owned(),
        ];
        let faked: Vec<&str> = std::iter::once("env").chain(settings.iter().map(String::as_str)).collect();
        self.0.meshd_under(&faked)
    }
}
