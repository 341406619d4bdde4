//! Whether the name server of a network answers: asked inside its namespace, over UDP and TCP (RFC 1035).

use crate::sockets::Sockets;
use mesh_model::NetworkId;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

/// Local data is answered in microseconds; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_millis(1000);
const TRIES: usize = 2;
const PORT: u16 = 53;

/// Asks for a name that the network is the authority for and that nothing has: nothing is forwarded for it. Returns why
/// there is no answer.
pub(super) async fn ask(
    sockets: &Sockets,
    network: NetworkId,
    name: &str,
    gateway: IpAddr,
) -> Option<String> {
    let question = question(rand::random(), &format!("doctor.{name}.mesh.internal"));
    let server = SocketAddr::new(gateway, PORT);
    let mut failed = None;
    for _ in 0..TRIES {
        failed = match timeout(PATIENCE, over_udp(sockets, network, server, &question)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("UDP: {error}")),
            Err(_) => Some("UDP: no answer".to_owned()),
        };
        if failed.is_none() {
            break;
        }
    }
    if failed.is_some() {
        return failed;
    }
    match timeout(PATIENCE, over_tcp(sockets, network, server, &question)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("TCP: {error}")),
        Err(_) => Some("TCP: no answer".to_owned()),
    }
}

async fn over_udp(
    sockets: &Sockets,
    network: NetworkId,
    server: SocketAddr,
    question: &[u8],
) -> io::Result<()> {
    let socket = sockets.within(network, || {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(unspecified(server), 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = [0; 512];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(question, &answer[..length]) {
            return Ok(());
        }
    }
}

async fn over_tcp(
    sockets: &Sockets,
    network: NetworkId,
    server: SocketAddr,
    question: &[u8],
) -> io::Result<()> {
    let socket = sockets
        .within(network, || if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })?;
    let mut stream = socket.connect(server).await?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    if answers(question, &answer) { Ok(()) } else { Err(io::Error::other("an answer to something else")) }
}

fn unspecified(server: SocketAddr) -> IpAddr {
    if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() }
}

/// A query for an A record.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    // Names of networks have 63 bytes at most, but may have dots: each part is a label.
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len()).unwrap_or_default());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Whether a message is the response to a query, whatever it says.
fn answers(question: &[u8], message: &[u8]) -> bool {
    message.len() >= 12 && message[..2] == question[..2] && message[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_as_the_rfc_has_it() {
        let query = question(0x1234, "doctor.a.mesh");
        assert_eq!(query[..12], [0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(query[12..], *b"\x06doctor\x01a\x04mesh\0\0\x01\0\x01");
        let mut response = query.clone();
        assert!(!answers(&query, &response), "a query is no response");
        response[2] |= 0x80;
        assert!(answers(&query, &response));
        response[0] ^= 1;
        assert!(!answers(&query, &response));
        assert!(!answers(&query, &[]));
    }
}
