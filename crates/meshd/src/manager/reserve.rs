//! What a change wants of every node is asked for before it is committed, at the agents of this manager and of the others:
//! published ports, which they hold, and subnets that their hosts are not on.

use super::{
    Error, Manager,
    peers::HeldElsewhere,
    sessions::{Held, everywhere_else},
};
use crate::wire::Claim;
use mesh_model::{PublishMode, PublishedPort};

/// What nodes hold for a change under way; nothing if nothing was wanted.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    here: Option<Held>,
    elsewhere: HeldElsewhere,
}

impl Reservation {
    /// What is odd about what was wanted, though nobody objects.
    pub(super) fn warnings(&self) -> Vec<String> {
        let here = self.here.as_ref().and_then(|held| held.elsewhere.clone());
        let nowhere = everywhere_else(here, self.elsewhere.elsewhere.clone()).unwrap_or_default();
        let nowhere = nowhere
            .into_iter()
            .map(|ip| format!("no node that answers has the address {ip}: its port is served by none yet"));
        let silent = self.here.iter().flat_map(|held| &held.silent).chain(&self.elsewhere.silent);
        let silent = silent.map(|node| {
            format!("node '{node}' did not say whether it can have what was asked for: 'meshctl status' there tells")
        });
        nowhere.chain(silent).collect()
    }
}

impl Manager {
    /// Those ports that no node holds yet. Host ports are held only where a replica is, when it comes.
    pub(super) fn new_ports(&self, ports: &[PublishedPort], already: &[PublishedPort]) -> Vec<PublishedPort> {
        let new = ports.iter().filter(|p| p.mode == PublishMode::Ingress);
        new.filter(|p| !self.is_held(p, already)).cloned().collect()
    }

    /// Asks every connected node for what a change wants, so that what can't be is refused before anything is committed.
    pub(super) async fn claim(&self, claim: Claim) -> Result<Reservation, Error> {
        if claim.is_empty() {
            return Ok(Reservation::default());
        }
        let (here, elsewhere) = tokio::join!(self.sessions.hold(claim.clone()), self.peers.hold(&claim));
        match (here, elsewhere) {
            (Ok(here), Ok(elsewhere)) => Ok(Reservation { here: Some(here), elsewhere }),
            (Err(refused), Ok(elsewhere)) => {
                self.peers.release(elsewhere).await;
                Err(refused)
            }
            (here, Err(refused)) => {
                if let Ok(here) = here {
                    self.sessions.release(here.id);
                }
                Err(Error::Objection(refused.text().to_owned()))
            }
        }
    }

    /// The change is done, one way or the other. Nodes that saw it committed hold the ports for good; otherwise
    /// they let go.
    pub(super) async fn settle(&self, reservation: Reservation, committed: bool) {
        if !committed {
            if let Some(here) = reservation.here {
                self.sessions.release(here.id);
            }
            self.peers.release(reservation.elsewhere).await;
        }
    }

    /// Whether nodes hold this port already: published before by the same service, or by another that shares it.
    fn is_held(&self, port: &PublishedPort, already: &[PublishedPort]) -> bool {
        let same = |p: &PublishedPort| {
            p.mode == PublishMode::Ingress
                && p.published == port.published
                && p.ip == port.ip
                && p.protocol.transport() == port.protocol.transport()
        };
        already.iter().any(same) || self.state.snapshot().services.values().any(|s| s.ports.iter().any(same))
    }
}
