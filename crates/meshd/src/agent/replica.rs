//! This node's copy of the state, made of what a manager's stream says.

use crate::wire::{Message, NetworkState, Resume};
use mesh_model::{NetworkId, NodeId, Object, Snapshot};
use std::sync::Arc;

/// The copy as far as the stream has come. It is one state only when [`Message::Reached`] says so.
#[derive(Debug)]
pub(crate) struct Replica {
    draft: Arc<Snapshot>,
}

impl Replica {
    /// Goes on from a state that was reached, of this connection or an earlier one.
    pub(crate) fn new(reached: Arc<Snapshot>) -> Self {
        Self { draft: reached }
    }

    /// What a manager needs to know to tell only what is new; none if nothing is there yet.
    pub(crate) fn resume(&self, me: NodeId) -> Option<Resume> {
        let Snapshot { epoch, revision, .. } = *self.draft;
        (epoch != 0).then(|| Resume { epoch, revision, networks: self.draft.networks_on(me) })
    }

    /// Takes a message about the state; returns the state whenever one is reached.
    pub(crate) fn take(&mut self, message: Message) -> Option<Arc<Snapshot>> {
        match message {
            Message::Base(base) => self.draft = base,
            Message::Network(NetworkState { network, endpoints, health }) => {
                self.forget(network);
                let endpoints = endpoints.into_iter().map(Object::Endpoint);
                let health = health.into_iter().map(|(id, health)| Object::Health(id, health));
                let draft = Arc::make_mut(&mut self.draft);
                endpoints.chain(health).for_each(|object| draft.apply(mesh_model::Change::Put(object)));
            }
            Message::Forget(network) => self.forget(network),
            Message::Changes(changes) => {
                let draft = Arc::make_mut(&mut self.draft);
                changes.into_iter().for_each(|change| draft.apply(change));
            }
            Message::Reached { revision } => {
                Arc::make_mut(&mut self.draft).revision = revision;
                return Some(Arc::clone(&self.draft));
            }
            // Not about the state.
            Message::Reserve { .. }
            | Message::TellPorts { .. }
            | Message::Release { .. }
            | Message::Keys(_) => {}
        }
        None
    }

    fn forget(&mut self, network: NetworkId) {
        if self.draft.endpoints.values().all(|e| e.network != network) {
            return;
        }
        let Snapshot { endpoints, health, .. } = Arc::make_mut(&mut self.draft);
        endpoints.retain(|id, endpoint| {
            let kept = endpoint.network != network;
            if !kept {
                health.remove(id);
            }
            kept
        });
    }
}
