//! The daemon, as the plugin needs it.

use crate::{config::Config, failure::Failure, request::Attachment};
use mesh_api::{Client, Disconnect, EndpointFilter, EndpointView, Error, NetworkView, StatusView};
use mesh_model::EndpointSpec;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a daemon that is being restarted is waited for.
const RESTART: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// The client of one daemon.
pub(crate) struct Daemon {
    client: Client,
}

impl Daemon {
    pub(crate) fn new(config: &Config) -> Self {
        Self { client: Client::new(&config.socket) }
    }

    pub(crate) async fn status(&self) -> Result<StatusView, Error> {
        self.client.status().await
    }

    pub(crate) async fn network(&self, name: &str) -> Result<NetworkView, Error> {
        self.client.network(name).await
    }

    pub(crate) async fn connect(&self, spec: &EndpointSpec) -> Result<EndpointView, Failure> {
        let doing = format!("cannot connect to network '{}'", spec.network);
        reached(|| self.client.connect(spec)).await.map_err(|e| Failure::of_daemon(&doing, &e))
    }

    /// Endpoints of this node whose owner begins so. None, if the node belongs to no cluster.
    pub(crate) async fn owned(&self, owner: &str) -> Result<Vec<EndpointView>, Error> {
        let filter = EndpointFilter { owner: Some(owner.to_owned()), ..EndpointFilter::default() };
        match reached(|| self.client.endpoints(&filter)).await {
            Err(error @ Error::Refused(_)) => match self.client.status().await {
                Ok(status) if status.state == mesh_api::State::Unclustered => Ok(Vec::new()),
                _ => Err(error),
            },
            other => other,
        }
    }

    /// The endpoints of one attachment: one, or none.
    pub(crate) async fn attached(
        &self,
        config: &Config,
        attachment: &Attachment,
    ) -> Result<Vec<EndpointView>, Error> {
        let owner = owner(config, attachment);
        let mut endpoints = self.owned(&owner).await?;
        // The filter takes what begins so: `eth1` is the beginning of `eth10`.
        endpoints.retain(|endpoint| endpoint.owner.as_ref() == Some(&owner));
        Ok(endpoints)
    }

    /// Removes an endpoint; one that is gone already is fine.
    pub(crate) async fn remove(&self, endpoint: &EndpointView, force: bool) -> Result<(), Error> {
        let request =
            Disconnect { network: endpoint.network.clone(), endpoint: endpoint.id.to_string(), force };
        match self.client.disconnect(&request).await {
            Ok(_) | Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What an attachment is called in the record of its endpoint. None of the parts can have a `/`.
pub(crate) fn owner(config: &Config, attachment: &Attachment) -> String {
    format!("{}{}/{}", config.owner(), attachment.container, attachment.ifname)
}

/// Asks until somebody listens, for a while.
async fn reached<T>(ask: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = Instant::now() + RESTART;
    loop {
        match ask().await {
            Err(Error::Unreachable { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
            other => return other,
        }
    }
}
