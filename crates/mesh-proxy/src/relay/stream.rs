//! Bytes both ways between two connections, until both have ended.

use super::{
    buffers,
    tally::{Amount, Counters},
};
use std::io;
use tokio::{io::Interest, net::TcpStream, select, task::coop::consume_budget};

/// Relays until both ends have sent all they have; an error is a reset of either.
pub(super) async fn relay(client: &TcpStream, upstream: &TcpStream, counters: &Counters) -> io::Result<()> {
    let (sent, received) = (&counters.sent, &counters.received);
    tokio::try_join!(pump(client, upstream, sent), pump(upstream, client, received)).map(drop)
}

/// One direction. What can't be sent on is not read: then the kernel holds both ends back.
async fn pump(from: &TcpStream, to: &TcpStream, amount: &Amount) -> io::Result<()> {
    loop {
        unless_broken(to.writable(), from).await?;
        unless_broken(from.readable(), to).await?;
        let mut buffer = buffers::take();
        loop {
            consume_budget().await;
            match from.try_read(&mut buffer) {
                // An end that has sent all may still hear.
                Ok(0) => return shutdown(to),
                Ok(read) => {
                    write_all(to, &buffer[..read], from).await?;
                    amount.bytes(read);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        buffers::give(buffer);
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8], from: &TcpStream) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => unless_broken(to.writable(), from).await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits for one end, and sees a reset of the other meanwhile.
async fn unless_broken(ready: impl Future<Output = io::Result<()>>, other: &TcpStream) -> io::Result<()> {
    select! {
        biased;
        ready = ready => ready,
        broken = other.ready(Interest::ERROR) => Err(broken.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())),
    }
}

fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}
