//! A replica that keeps its connections: it echoes lines, raw, after an upgrade, and as HTTP.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// A server in a namespace, which echoes for as long as the test runs. A connection that begins with `GET` gets HTTP:
/// the path for an answer, or a tunnel if it asks for one. Any other gets its lines back.
#[derive(Debug)]
pub struct Echo;

impl Echo {
    /// Listens on a port of every address.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let listener = namespace.inside(|| Ok(TcpListener::bind(("::", port))?))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream));
            }
        });
        Ok(Self)
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

    /// Sends every datagram to a port back.
    pub fn datagrams(namespace: &Namespace, port: u16) -> Result<Self> {
        let socket = namespace.inside(|| Ok(UdpSocket::bind(("::", port))?))?;
        thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..length], from);
            }
        });
        Ok(Self)
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

fn echo(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        match line.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()) {
            Some(path) => {
                let path = path.to_owned();
                http(&mut reader, &mut writer, &path)?;
            }
            None => writer.write_all(line.as_bytes())?,
        }
        line.clear();
    }
    Ok(())
}

/// Answers one request. What follows an upgrade is lines again.
fn http(reader: &mut impl BufRead, writer: &mut impl Write, path: &str) -> io::Result<()> {
    let mut upgrade = false;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && line.trim_end() != "" {
        upgrade |= line.to_ascii_lowercase().starts_with("upgrade:");
        line.clear();
    }
    let answer = if upgrade {
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n".to_owned()
    } else {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}\n", path.len() + 1)
    };
    writer.write_all(answer.as_bytes())
}
