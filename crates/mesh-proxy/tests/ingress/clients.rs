//! A client that sends what it is told to and reads responses one by one.

use crate::rig::DEADLINE;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// A response, or a request as a replica saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The values of a field, in order.
    pub(crate) fn fields(&self, wanted: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value).collect()
    }
}

/// One end of a connection, with what was read too far.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    ahead: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }

    /// A connection whose kernel holds little of what is not read, as the rest is for the peer to hold.
    pub(crate) async fn connect_narrow(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        Self::new(socket.connect(addr).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        let read = timeout(DEADLINE, self.stream.read(&mut piece)).await.expect("nothing comes").unwrap_or(0);
        self.ahead.extend_from_slice(&piece[..read]);
        read > 0
    }

    /// The next head, without its empty line; absent when the peer has closed.
    pub(crate) async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n\r\n") {
                let head: Vec<u8> = self.ahead.drain(..end + 4).collect();
                return Some(String::from_utf8(head[..end].to_vec()).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    pub(crate) async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.ahead.len() < bytes {
            assert!(self.more().await, "closed after {} of {bytes} bytes", self.ahead.len());
        }
        self.ahead.drain(..bytes).collect()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.ahead, b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).unwrap();
            }
            assert!(self.more().await, "closed in the middle of a line");
        }
    }

    /// Everything until the peer closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.ahead)
    }

    /// The next message with its body, if it may have one.
    pub(crate) async fn message(&mut self, may_have_body: bool) -> Option<Message> {
        let head = self.head().await?;
        let mut message = Message { head, body: Vec::new() };
        let length = message.fields("content-length").first().map(|length| length.parse().unwrap());
        let chunked = message.fields("transfer-encoding") == ["chunked"];
        message.body = match (chunked, length) {
            _ if !may_have_body => Vec::new(),
            (true, _) => self.chunks().await,
            (false, Some(length)) => self.exactly(length).await,
            (false, None) => Vec::new(),
        };
        Some(message)
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line().await, 16).unwrap();
            body.extend(self.exactly(size).await);
            assert_eq!(self.line().await, "");
            if size == 0 {
                return body;
            }
        }
    }

    /// Sends a request and reads its response.
    pub(crate) async fn ask(&mut self, request: &str) -> Message {
        self.send(request).await;
        self.message(!request.starts_with("HEAD")).await.expect("a response")
    }

    pub(crate) async fn get(&mut self, path: &str) -> Message {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await
    }
}

/// One request on a connection of its own.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Message {
    Wire::connect(addr).await.get(path).await
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
