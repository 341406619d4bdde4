//! Whether name servers answer: those of a network, asked inside its namespace over UDP and TCP, and the resolvers beyond.

use crate::sockets::Sockets;
use mesh_dns::{Question, ResolveError, Upstream};
use mesh_model::Network;
use std::{fmt::Display, time::Duration};

/// Local data is answered in microseconds, a resolver beyond has the root's name servers at hand; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_millis(1000);
const TRIES: usize = 2;

/// Asks a network's own name server for a name that the network is the authority for and that nothing has: nothing is
/// forwarded for it. Returns why there is no answer.
pub(super) async fn ask(sockets: &Sockets, network: &Network, server: Upstream) -> Option<String> {
    // A name that DNS can't express is none of the network's domain, which goes by the ID then.
    let question = |label: &str| Question::new(&format!("doctor.{label}.mesh.internal"), "A", false);
    let question = match question(&network.name).or_else(|_| question(&network.id.to_string())) {
        Ok(question) => question,
        Err(error) => return Some(error.to_string()),
    };
    if let Err(error) = over_udp(&question, server, sockets).await {
        return Some(why("UDP", error));
    }
    question.ask_over_tcp(server, sockets, PATIENCE).await.err().map(|error| why("TCP", error))
}

/// Asks a resolver for the root's name servers, which it knows or refuses to tell. Returns why there is no answer.
pub(super) async fn ask_beyond(sockets: &Sockets, server: Upstream) -> Option<String> {
    let asked = match Question::new(".", "NS", true) {
        Ok(question) => over_udp(&question, server, sockets).await,
        Err(error) => Err(error),
    };
    asked.err().map(|error| error.to_string())
}

async fn over_udp(question: &Question, server: Upstream, sockets: &Sockets) -> Result<(), ResolveError> {
    let mut answer = question.ask(server, sockets, PATIENCE).await;
    for _ in 1..TRIES {
        if answer.is_ok() {
            break;
        }
        answer = question.ask(server, sockets, PATIENCE).await;
    }
    answer.map(drop)
}

fn why(transport: &str, error: impl Display) -> String {
    format!("{transport}: {error}")
}
