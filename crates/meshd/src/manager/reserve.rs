//! Published ports are held on every node before they are committed: at the agents of this manager and of the others.

use super::{Error, Manager, peers::HeldElsewhere, sessions::Held};
use mesh_model::{PublishMode, PublishedPort};

/// Ports that nodes hold for a publish under way.
#[derive(Debug)]
pub(super) struct Reservation {
    here: Held,
    elsewhere: HeldElsewhere,
}

impl Manager {
    /// Asks every connected node to hold the ports that are new, so that a port in use is refused before anything
    /// is committed. Host ports are held only where a replica is, when it comes.
    pub(super) async fn hold_ports(
        &self,
        ports: &[PublishedPort],
        already: &[PublishedPort],
    ) -> Result<Reservation, Error> {
        let new = ports.iter().filter(|p| p.mode == PublishMode::Ingress);
        let new: Vec<PublishedPort> = new.filter(|p| !self.is_held(p, already)).cloned().collect();
        if new.is_empty() {
            return Ok(Reservation { here: Held::default(), elsewhere: HeldElsewhere::default() });
        }
        let (here, elsewhere) = tokio::join!(self.sessions.hold(new.clone()), self.peers.hold(&new));
        match (here, elsewhere) {
            (Ok(here), Ok(elsewhere)) => Ok(Reservation { here, elsewhere }),
            (Err(refused), Ok(elsewhere)) => {
                self.peers.release(elsewhere).await;
                Err(refused)
            }
            (here, Err(refused)) => {
                if let Ok(here) = here {
                    self.sessions.release(here);
                }
                Err(Error::PortInUse(refused.text().to_owned()))
            }
        }
    }

    /// The publish is done, one way or the other. Nodes that saw it committed hold the ports for good; otherwise
    /// they let go.
    pub(super) async fn settle(&self, reservation: Reservation, committed: bool) {
        if !committed {
            self.sessions.release(reservation.here);
            self.peers.release(reservation.elsewhere).await;
        }
    }

    /// Whether nodes hold this port already: published before by the same service, or by another that shares it.
    fn is_held(&self, port: &PublishedPort, already: &[PublishedPort]) -> bool {
        let same = |p: &PublishedPort| {
            p.published == port.published && p.ip == port.ip && p.protocol.is_tcp() == port.protocol.is_tcp()
        };
        already.iter().any(same) || self.state.snapshot().services.values().any(|s| s.ports.iter().any(same))
    }
}
