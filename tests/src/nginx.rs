//! Debian's nginx as a replica: a page of its own, a log of who asked, health that can be switched.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::Host;
use crate::namespace::Namespace;
use crate::probe::within;
use crate::process::Background;

/// The directory, configuration and log of one nginx, wherever it runs in the lab.
#[derive(Debug, Clone)]
pub struct Nginx {
    directory: String,
    files: PathBuf,
}

/// A request, as nginx logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The peer address of the connection.
    pub client: String,
    /// The `X-Forwarded-For` header, `-` if there was none.
    pub forwarded_for: String,
    /// Method, target and version.
    pub request: String,
    /// The status that was answered.
    pub status: u16,
}

impl Nginx {
    /// Writes the files of an nginx that listens on `port` and answers every path with its page. Any namespace of
    /// the lab tells which lab it is. `/health` answers 200 until told otherwise.
    pub fn new(lab: &Namespace, name: &str, port: u16, page: &str) -> Result<Self> {
        Self::with(lab, name, page, |nginx| nginx.configuration(port, "", "$remote_addr"))
    }

    /// Likewise one that expects the PROXY protocol, and logs the client that it tells.
    pub fn behind_proxy_protocol(lab: &Namespace, name: &str, port: u16) -> Result<Self> {
        let configuration =
            |nginx: &Self| nginx.configuration(port, " proxy_protocol", "$proxy_protocol_addr");
        Self::with(lab, name, name, configuration)
    }

    fn with(
        lab: &Namespace,
        name: &str,
        page: &str,
        configuration: impl FnOnce(&Self) -> String,
    ) -> Result<Self> {
        let directory = format!("/run/lab/nginx-{name}");
        let nginx = Self { files: lab.file(&directory), directory };
        fs::create_dir_all(nginx.files.join("tmp")).context("the directory of nginx")?;
        fs::write(nginx.files.join("nginx.conf"), configuration(&nginx))?;
        nginx.set_page(page)?;
        nginx.set_healthy(true)?;
        Ok(nginx)
    }

    /// The command that runs it in the foreground.
    pub fn command(&self) -> Vec<String> {
        let conf = format!("{}/nginx.conf", self.directory);
        ["nginx", "-p", &self.directory, "-c", &conf].map(str::to_owned).to_vec()
    }

    /// Runs it in a namespace and waits until it listens.
    pub fn start(&self, namespace: &Namespace) -> Result<Background> {
        let command = self.command();
        let line: Vec<&str> = command.iter().map(String::as_str).collect();
        let process = namespace.spawn(&line)?;
        self.listening()?;
        Ok(process)
    }

    /// Sets the page, one line.
    pub fn set_page(&self, page: &str) -> Result<()> {
        Ok(fs::write(self.files.join("index.html"), format!("{page}\n"))?)
    }

    /// Makes `/health` answer 200 or 503.
    pub fn set_healthy(&self, healthy: bool) -> Result<()> {
        let file = self.files.join("healthy");
        if healthy {
            fs::write(file, "healthy\n")?;
        } else if file.exists() {
            fs::remove_file(file)?;
        }
        Ok(())
    }

    /// The requests that were logged so far, those for `/health` left out.
    pub fn requests(&self) -> Result<Vec<Logged>> {
        let log = fs::read_to_string(self.files.join("access.log")).context("nginx has no log yet")?;
        let mut requests = Vec::new();
        for line in log.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            ensure!(fields.len() == 4, "a line of another format: {line}");
            requests.push(Logged {
                client: fields[0].to_owned(),
                forwarded_for: fields[1].to_owned(),
                request: fields[2].to_owned(),
                status: fields[3].parse()?,
            });
        }
        Ok(requests)
    }

    /// Waits until it listens: nginx writes its pid file after it has opened its sockets.
    pub(crate) fn listening(&self) -> Result<()> {
        within(Duration::from_secs(20), "nginx listens", || {
            let pid = fs::read_to_string(self.files.join("pid")).with_context(|| self.errors())?;
            ensure!(!pid.trim().is_empty(), "the pid file is empty");
            Ok(())
        })
    }

    /// Forgets a previous run, so that [`Nginx::listening`] waits for the next one.
    pub(crate) fn forget(&self) -> Result<()> {
        let pid = self.files.join("pid");
        if pid.exists() {
            fs::remove_file(pid)?;
        }
        Ok(())
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.files.join("error.log")).unwrap_or_default()
    }

    /// One process, so that killing it leaves no worker behind that still answers. A connection's first answer after two seconds says
    /// that it is the last one: as servers do that are to be drained under load. Those of `/held` are to be held.
    fn configuration(&self, port: u16, listen: &str, client: &str) -> String {
        let directory = &self.directory;
        format!(
            r#"daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format who '{client}\t$http_x_forwarded_for\t$request\t$status';
  access_log {directory}/access.log who;
  client_body_temp_path {directory}/tmp/body;
  proxy_temp_path {directory}/tmp/proxy;
  fastcgi_temp_path {directory}/tmp/fastcgi;
  uwsgi_temp_path {directory}/tmp/uwsgi;
  scgi_temp_path {directory}/tmp/scgi;
  default_type text/plain;
  keepalive_time 2s;
  server {{
    listen {port}{listen};
    listen [::]:{port}{listen};
    root {directory};
    location / {{ try_files /index.html =404; }}
    location = /held {{ access_log off; keepalive_time 1h; keepalive_requests 1000000; try_files /index.html =404; }}
    location = /health {{ access_log off; try_files /healthy =503; }}
  }}
}}
"#
        )
    }
}

/// What a [`Replica`] is told to be.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaSpec<'a> {
    /// The name of its endpoint; its page says the same.
    pub name: &'a str,
    /// Its network; `None` leaves it to the service.
    pub network: Option<&'a str>,
    /// The service that it is a replica of.
    pub service: Option<&'a str>,
    /// The port that it listens on.
    pub port: u16,
}

/// An nginx started by `meshctl run`. Ends when dropped.
#[derive(Debug)]
pub struct Replica {
    /// Its page, health and log.
    pub nginx: Nginx,
    name: String,
    host: Host,
    options: Vec<String>,
    process: Option<Background>,
}

impl Replica {
    /// Starts a replica on a host and waits until it listens.
    pub fn start(host: &Host, spec: ReplicaSpec<'_>) -> Result<Self> {
        let mut replica = Self::new(host, spec)?;
        replica.restart()?;
        Ok(replica)
    }

    /// One that is to be started by [`Replica::restart`].
    pub fn new(host: &Host, spec: ReplicaSpec<'_>) -> Result<Self> {
        let nginx = Nginx::new(host, spec.name, spec.port, spec.name)?;
        let mut options = vec!["--name".to_owned(), spec.name.to_owned()];
        for (option, value) in [("--network", spec.network), ("--service", spec.service)] {
            options.extend(value.into_iter().flat_map(|value| [option.to_owned(), value.to_owned()]));
        }
        let name = spec.name.to_owned();
        Ok(Self { nginx, name, host: host.clone(), options, process: None })
    }

    /// The name of its endpoint, which is its page too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, again after [`Replica::kill`] or [`Replica::terminate`], and waits until it listens.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.nginx.forget()?;
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let command = self.nginx.command();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.process = Some(self.host.run(&options, &command)?);
        self.nginx.listening()
    }

    /// The process `meshctl run`.
    pub fn process(&mut self) -> Result<&mut Background> {
        self.process.as_mut().context("the replica does not run")
    }

    /// The namespace of the replica, with its resolv.conf.
    pub fn namespace(&self) -> Result<Namespace> {
        let process = self.process.as_ref().context("the replica does not run")?;
        Ok(self.host.of_process("replica", process.child()?))
    }

    /// Kills `meshctl run` (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks `meshctl run` to end (SIGTERM, which nginx gets) and waits.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the replica does not run")?;
        process.terminate(Duration::from_secs(30))?;
        Ok(())
    }
}
