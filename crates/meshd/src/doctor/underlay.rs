//! What answers past the overlays: the ports of the nodes themselves, to tell a blocked port from a dead host.

use crate::wire::client;
use mesh_model::Role;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two tries over UDP.
const AGAIN: Duration = Duration::from_millis(400);

/// What a port does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    /// It answers, as it should.
    Open,
    /// The host says that nobody listens: it is there, and the port is not blocked.
    Refused,
    /// Somebody listens, but is not who should, or refuses us; and why.
    Strange(String),
    /// Nothing comes back.
    Silent,
    /// The network says that there is no way.
    Unreachable(String),
}

impl Port {
    /// The host at the address answered.
    pub(super) fn shows_life(&self) -> bool {
        matches!(self, Self::Open | Self::Refused | Self::Strange(_))
    }
}

/// Asks the manager's port of a node: of a manager as an agent does, of a worker whether its host refuses it.
pub(super) async fn manager_port(role: Role, address: SocketAddr, connector: Option<TlsConnector>) -> Port {
    match (role, connector) {
        (Role::Manager, Some(connector)) => {
            match timeout(PATIENCE, client::open(address, &connector)).await {
                Ok(Ok(_)) => Port::Open,
                Ok(Err(client::Error::Io(error))) => of_error(&error),
                Ok(Err(error)) => Port::Strange(error.to_string()),
                Err(_) => Port::Silent,
            }
        }
        _ => tcp(address).await,
    }
}

/// Connects and hangs up.
pub(super) async fn tcp(address: SocketAddr) -> Port {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Port::Open,
        Ok(Err(error)) => of_error(&error),
        Err(_) => Port::Silent,
    }
}

/// Sends a byte to a UDP port. Who listens there does not answer a stranger; a host on which nobody listens says so.
pub(super) async fn udp(from: IpAddr, to: SocketAddr) -> Port {
    let asked = async {
        let socket = UdpSocket::bind((from, 0)).await?;
        socket.connect(to).await?;
        for _ in 0..PATIENCE.as_millis() / AGAIN.as_millis() {
            socket.send(&[0]).await?;
            if let Ok(answered) = timeout(AGAIN, socket.recv(&mut [0; 1])).await {
                return answered.map(|_| Port::Open);
            }
        }
        Ok(Port::Silent)
    };
    asked.await.unwrap_or_else(|error: io::Error| of_error(&error))
}

fn of_error(error: &io::Error) -> Port {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Port::Refused,
        io::ErrorKind::TimedOut => Port::Silent,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Port::Unreachable(error.to_string())
        }
        // It broke off in the middle of the handshake.
        _ => Port::Strange(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn open_and_closed_are_told_apart() {
        let listener = tokio::net::TcpListener::bind((HERE, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(tcp(address).await, Port::Open);
        drop(listener);
        assert_eq!(tcp(address).await, Port::Refused);
        let silent = UdpSocket::bind((HERE, 0)).await.unwrap();
        let address = silent.local_addr().unwrap();
        assert_eq!(udp(HERE, address).await, Port::Silent);
        drop(silent);
        assert_eq!(udp(HERE, address).await, Port::Refused);
    }
}
