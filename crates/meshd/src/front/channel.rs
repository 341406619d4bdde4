//! Messages over a Unix socket: a length, JSON, and the descriptors that go with it (unix(7), SCM_RIGHTS).

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};
use tokio::{io::Interest, net::UnixStream};

/// Bytes of the length, big-endian.
const HEAD: usize = 4;
/// The longest message. Both ends are one program, of one user: this is for bugs.
const MAX_LEN: usize = 1 << 30;
/// The most descriptors that go with one message.
const MAX_DESCRIPTORS: usize = 2;

/// Sends one message. Cancelled, it may have sent a part: the socket is of no use then.
pub(crate) async fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message)?;
    let len = u32::try_from(frame.len() - HEAD).map_err(io::Error::other)?;
    frame[..HEAD].copy_from_slice(&len.to_be_bytes());

    // The descriptors go with the first byte.
    let mut sent = stream.async_io(Interest::WRITABLE, || send_first(stream, &frame, descriptors)).await?;
    while sent < frame.len() {
        stream.writable().await?;
        match stream.try_write(&frame[sent..]) {
            Ok(len) => sent += len,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn send_first(stream: &UnixStream, frame: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(frame)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// The next message with its descriptors; none once the other end is closed. Not to be cancelled and called again.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut descriptors = Vec::new();
    let mut head = [0; HEAD];
    let mut got = 0;
    while got < HEAD {
        let received =
            stream.async_io(Interest::READABLE, || receive_part(stream, &mut head[got..], &mut descriptors));
        got += match received.await? {
            0 if got == 0 => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            len => len,
        };
    }
    let len = u32::from_be_bytes(head) as usize;
    if len > MAX_LEN {
        return Err(io::Error::new(ErrorKind::InvalidData, "a message is too long"));
    }
    let mut body = vec![0; len];
    let mut got = 0;
    while got < len {
        stream.readable().await?;
        match stream.try_read(&mut body[got..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => got += len,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Some((serde_json::from_slice(&body)?, descriptors)))
}

fn receive_part(stream: &UnixStream, part: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(part)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors were lost: too many files are open"));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read, io::Seek, io::Write};

    #[tokio::test]
    async fn messages_arrive_whole_and_with_their_descriptors() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"contents").unwrap();
        file.rewind().unwrap();
        let long = "x".repeat(3_000_000);
        let sending = async {
            send(&one, &"first", &[]).await.unwrap();
            send(&one, &long, &[file.into()]).await.unwrap();
            send(&one, &"last", &[]).await.unwrap();
            drop(one);
        };
        let receiving = async {
            let (first, none): (String, _) = receive(&other).await.unwrap().unwrap();
            assert!(first == "first" && none.is_empty());
            let (second, mut files): (String, _) = receive(&other).await.unwrap().unwrap();
            assert!(second == long && files.len() == 1);
            let mut contents = String::new();
            File::from(files.remove(0)).read_to_string(&mut contents).unwrap();
            assert_eq!(contents, "contents");
            let (last, none): (String, _) = receive(&other).await.unwrap().unwrap();
            assert!(last == "last" && none.is_empty());
            assert!(receive::<String>(&other).await.unwrap().is_none());
        };
        tokio::join!(sending, receiving);
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        one.try_write(b"\xff\xff\xff\xff").unwrap();
        assert!(receive::<String>(&other).await.is_err());
        let (one, other) = UnixStream::pair().unwrap();
        one.try_write(b"\0\0\0\x02\"").unwrap();
        drop(one);
        assert!(receive::<String>(&other).await.is_err());
    }
}
