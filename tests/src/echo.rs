//! A replica that keeps its connections: it echoes lines, raw, after an upgrade, and as HTTP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::namespace::Namespace;

/// A server in a namespace, which echoes for as long as the test runs, or until it is [ended](Echo::end). A connection that
/// begins with `GET` gets HTTP: the path for an answer, or a tunnel if it asks for one. Any other gets its lines back.
#[derive(Debug)]
pub struct Echo {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Echo {
    /// Listens on a port of every address.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let listener = namespace.inside(|| Ok(std::net::TcpListener::bind(("::", port))?))?;
        listener.set_nonblocking(true)?;
        Self::serve(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                // Without a file for it a connection waits for one.
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(echo(stream));
            }
        })
    }

    /// Sends every datagram to a port back.
    pub fn datagrams(namespace: &Namespace, port: u16) -> Result<Self> {
        let socket = namespace.inside(|| Ok(UdpSocket::bind(("::", port))?))?;
        socket.set_nonblocking(true)?;
        Self::serve(async move {
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let mut datagram = [0; 64];
            loop {
                let (length, from) = socket.recv_from(&mut datagram).await?;
                let _ = socket.send_to(&datagram[..length], from).await;
            }
        })
    }

    fn serve(server: impl Future<Output = io::Result<()>> + Send + 'static) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let whole_test = async {
                    if ended.await.is_err() {
                        std::future::pending().await
                    }
                };
                tokio::select! { _ = server => {}, () = whole_test => {} }
            });
        });
        Ok(Self { end, thread })
    }

    /// Closes its sockets, those of its connections among them.
    pub fn end(self) {
        // Failed by itself, it has closed them already.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }

    /// Connects to one.
    pub fn connect(client: &Namespace, to: &str) -> Result<TcpStream> {
        let stream = client.inside(|| Ok(TcpStream::connect(to)?)).with_context(|| to.to_owned())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }

    /// Says something, and hears it.
    pub fn talk(mut stream: &TcpStream) -> io::Result<()> {
        stream.write_all(b"hello\n")?;
        stream.read_exact(&mut [0; 6])
    }
}

/// Whether a datagram comes back from where it was sent.
pub fn comes_back(client: &Namespace, to: SocketAddr) -> Result<bool> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    client.inside(move || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let answered = socket.send_to(b"?", to).and_then(|_| socket.recv_from(&mut [0; 8]));
        Ok(answered.is_ok_and(|(_, from)| from == to))
    })
}

async fn echo(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::with_capacity(512, reader);
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 0 {
        match line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()) {
            Some(path) => {
                let path = path.to_owned();
                http(&mut reader, &mut writer, &path).await?;
            }
            None => writer.write_all(line.as_bytes()).await?,
        }
        line.clear();
    }
    Ok(())
}

/// Answers one request. What follows an upgrade is lines again.
async fn http(
    reader: &mut (impl AsyncBufRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    path: &str,
) -> io::Result<()> {
    let mut upgrade = false;
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 0 && line.trim_end() != "" {
        upgrade |= line.to_ascii_lowercase().starts_with("upgrade:");
        line.clear();
    }
    let answer = if upgrade {
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n".to_owned()
    } else {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}\n", path.len() + 1)
    };
    writer.write_all(answer.as_bytes()).await
}
