//! Many datagrams a system call: recvmmsg(2) and sendmmsg(2), with buffers that are used again. Answers to one client go
//! through the network's layers together, as far as their lengths allow (`UDP_SEGMENT`, udp(7)): that is most of what an
//! answer costs, and resolvers send their questions for A and AAAA in one go.

use crate::wire::EDNS_UDP_LEN;
use std::{
    cmp::Reverse,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Datagrams a call, at most.
const BATCH: usize = 64;
/// As many are expected where there was one.
const FEW: usize = 4;
/// The longest query that is read; EDNS options included, none is nearly as long.
const MAX_QUERY: usize = 4096;

/// Room for datagrams, and for an answer to each.
pub(super) struct Batch {
    slots: Box<[Slot]>,
    /// Of the last [`Batch::receive`].
    received: usize,
    messages: Messages,
}

/// What system calls are told, made anew for each of them, in the same memory: as much of it as is needed.
#[derive(Default)]
struct Messages {
    parts: Vec<libc::iovec>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
    /// Slots with answers, as they are sent.
    order: Vec<usize>,
    groups: Vec<Together>,
}

struct Slot {
    query: [u8; MAX_QUERY],
    answer: [u8; EDNS_UDP_LEN],
    /// Octets of each.
    query_len: usize,
    answer_len: usize,
    client: libc::sockaddr_storage,
    client_len: libc::socklen_t,
    /// The same.
    from: SocketAddr,
}

/// Answers that follow each other in the order of sending and go out together: all as long as the first, the last at most.
#[derive(Clone, Copy, Default)]
struct Together {
    first: usize,
    count: usize,
}

/// What goes out together is one datagram until it is cut, and has as many octets at most.
const MAX_TOGETHER: usize = 65_000;
/// Octets of a control message that says how long segments are.
// SAFETY: arithmetic.
#[allow(unsafe_code)]
const SEGMENT_SPACE: usize = unsafe { libc::CMSG_SPACE(mem::size_of::<u16>() as u32) } as usize;

/// Room for a control message, aligned as one.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; SEGMENT_SPACE]);

impl Batch {
    #[allow(unsafe_code)]
    pub(super) fn new() -> Self {
        let slot = || Slot {
            query: [0; MAX_QUERY],
            answer: [0; EDNS_UDP_LEN],
            query_len: 0,
            answer_len: 0,
            // SAFETY: all zeros is an address of no family.
            client: unsafe { mem::zeroed() },
            client_len: 0,
            from: (Ipv4Addr::UNSPECIFIED, 0).into(),
        };
        let messages = Messages {
            parts: Vec::with_capacity(BATCH),
            controls: Vec::with_capacity(BATCH),
            headers: Vec::with_capacity(BATCH),
            order: Vec::with_capacity(BATCH),
            groups: Vec::with_capacity(BATCH),
        };
        Self { slots: (0..BATCH).map(|_| slot()).collect(), received: 0, messages }
    }

    /// Waits for a datagram, and reads what is there by then, up to a batch: at first a few, and more as long as more come.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let room = (self.received * 2).clamp(FEW, BATCH);
        self.received = 0;
        let Messages { parts, headers, .. } = &mut self.messages;
        parts.clear();
        headers.clear();
        for slot in &mut self.slots[..room] {
            slot.client_len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            parts.push(part(&mut slot.query));
            let at = parts.len() - 1;
            headers.push(header(slot, &mut parts[at]));
        }
        // SAFETY: each header points to an address and a buffer of its own slot, none of which moves or goes before the call
        // returns, with the lengths that they have.
        #[allow(unsafe_code)]
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                room as libc::c_uint,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (slot, header) in self.slots.iter_mut().zip(&headers[..received]) {
            (slot.query_len, slot.answer_len) = (header.msg_len as usize, 0);
            slot.client_len = header.msg_hdr.msg_namelen;
        }
        self.received = received;
        Ok(())
    }

    /// How many datagrams were read.
    pub(super) fn len(&self) -> usize {
        self.received
    }

    /// Has `answer` look at each datagram, and write its answer: it returns the length of that, 0 if there is none.
    pub(super) fn each(&mut self, mut answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize) {
        for slot in &mut self.slots[..self.received] {
            let Some(client) = address(&slot.client, slot.client_len) else { continue };
            slot.from = client;
            slot.answer_len = answer(&slot.query[..slot.query_len], client, &mut slot.answer);
        }
    }

    /// Sends the answers. What there is no room for, or can't be sent, is lost as any datagram may be: clients ask again.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) {
        let Messages { order, groups, .. } = &mut self.messages;
        let slots = &self.slots;
        order.clear();
        order.extend((0..self.received).filter(|at| slots[*at].answer_len > 0));
        if order.len() > 1 {
            order.sort_unstable_by_key(|at| (slots[*at].from, Reverse(slots[*at].answer_len)));
        }
        groups.clear();
        join(slots, order, groups);
        let mut next = 0;
        while next < self.messages.groups.len() {
            match self.send_from(socket, next) {
                Ok(sent) => next += sent,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                // Whatever it is, it may be this one client's; or what goes out there takes no segments, or shorter ones.
                Err(_) => {
                    let Together { first, count } = self.messages.groups[next];
                    if count == 1 {
                        next += 1;
                        continue;
                    }
                    let alone = (first..first + count).map(|first| Together { first, count: 1 });
                    self.messages.groups.splice(next..=next, alone);
                }
            }
        }
    }

    /// Sends these groups and those behind them; returns how many were sent.
    fn send_from(&mut self, socket: BorrowedFd<'_>, next: usize) -> io::Result<usize> {
        let Messages { parts, controls, headers, order, groups } = &mut self.messages;
        parts.clear();
        controls.clear();
        headers.clear();
        for at in order.iter() {
            let slot = &mut self.slots[*at];
            parts.push(part(&mut slot.answer[..slot.answer_len]));
        }
        for group in &groups[next..] {
            let slot = &mut self.slots[order[group.first]];
            let mut header = header(slot, &mut parts[group.first]);
            header.msg_hdr.msg_iovlen = group.count as _;
            if group.count > 1 {
                controls.push(Control([0; SEGMENT_SPACE]));
                let at = controls.len() - 1;
                segment(&mut header.msg_hdr, &mut controls[at], slot.answer_len as u16);
            }
            headers.push(header);
        }
        // SAFETY: each header points to an address, parts and a control message that stay where they are until the call
        // returns, with the lengths that they have: no list grows beyond what it has room for. Nothing is written but the
        // lengths in the headers.
        #[allow(unsafe_code)]
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Finds out what goes out together, of answers in the order of their clients and of falling length.
fn join(slots: &[Slot], order: &[usize], groups: &mut Vec<Together>) {
    let mut first = 0;
    while first < order.len() {
        let head = &slots[order[first]];
        let of_head = order[first..].iter().map(|at| &slots[*at]).take_while(|slot| slot.from == head.from);
        let (mut is_open, mut octets) = (true, 0);
        let joining = of_head.take_while(|slot| {
            octets += slot.answer_len;
            let joins = is_open && octets <= MAX_TOGETHER;
            is_open = slot.answer_len == head.answer_len;
            joins
        });
        let count = joining.count();
        groups.push(Together { first, count });
        first += count;
    }
}

/// Has the kernel cut a message into datagrams of this many octets.
fn segment(header: &mut libc::msghdr, control: &mut Control, octets: u16) {
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = SEGMENT_SPACE as _;
    // SAFETY: the first control message has its place at the start of the room, which is as large as this one needs and aligned
    // for it.
    #[allow(unsafe_code)]
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as u32) as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<u16>(), octets);
    }
}

fn part(octets: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: octets.as_mut_ptr().cast(), iov_len: octets.len() }
}

fn header(slot: &mut Slot, part: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: all zeros is a header of no parts and no address; on some libcs it has padding.
    #[allow(unsafe_code)]
    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
    header.msg_hdr.msg_name = ptr::from_mut(&mut slot.client).cast();
    header.msg_hdr.msg_namelen = slot.client_len;
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    header
}

fn address(storage: &libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    let len = len as usize;
    let storage = ptr::from_ref(storage);
    // SAFETY: an address of that family has that type, and the storage has room for any and is aligned for it.
    #[allow(unsafe_code)]
    unsafe {
        match libc::c_int::from((*storage).ss_family) {
            libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
                let v4 = &*storage.cast::<libc::sockaddr_in>();
                let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(address), u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
                let v6 = &*storage.cast::<libc::sockaddr_in6>();
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::UdpSocket, os::fd::AsFd, time::Duration};

    #[test]
    fn each_answer_goes_to_who_asked_in_both_families() {
        let mut batch = Batch::new();
        for server in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(server).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let to = server.local_addr().unwrap();
            let clients: Vec<UdpSocket> = (0..100).map(|_| UdpSocket::bind((to.ip(), 0)).unwrap()).collect();
            for (index, client) in clients.iter().enumerate() {
                client.send_to(&[index as u8; 3][..index % 4], to).unwrap();
            }
            let mut seen = 0;
            while seen < clients.len() {
                batch.receive(server.as_fd()).unwrap();
                seen += batch.received;
                batch.each(|query, from, out| {
                    assert!(clients.iter().any(|client| client.local_addr().unwrap() == from));
                    out[..query.len()].copy_from_slice(query);
                    out[query.len()] = 7;
                    // Nothing for the empty ones.
                    if query.is_empty() { 0 } else { query.len() + 1 }
                });
                batch.send(server.as_fd());
            }
            assert_eq!(batch.receive(server.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            for (index, client) in clients.iter().enumerate().filter(|(index, _)| index % 4 != 0) {
                let mut answer = [0; 8];
                let len = client.recv(&mut answer).unwrap();
                let expected = [&[index as u8; 3][..index % 4], &[7]].concat();
                assert_eq!(answer[..len], expected);
            }
        }
    }

    /// Answers of many lengths to few clients, in an order of chance: each arrives once and whole, whatever goes out together.
    #[test]
    fn answers_that_go_out_together_arrive_apart() {
        let mut batch = Batch::new();
        for server in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(server).unwrap();
            let to = server.local_addr().unwrap();
            let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind((to.ip(), 0)).unwrap()).collect();
            let len = |index: usize| [40, 40, 700, 40, 41, 1, 1232, 40][index * 7 % 8];
            for index in 0..48 {
                clients[index % 3].send_to(&[index as u8], to).unwrap();
            }
            // As if many had come before.
            batch.received = BATCH;
            batch.receive(server.as_fd()).unwrap();
            assert_eq!(batch.received, 48);
            batch.each(|query, _, out| {
                let index = query[0];
                out[..len(index.into())].fill(index);
                len(index.into())
            });
            batch.send(server.as_fd());
            for (number, client) in clients.iter().enumerate() {
                client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut seen: Vec<usize> = (0..16)
                    .map(|_| {
                        let mut answer = [0; 2000];
                        let got = client.recv(&mut answer).unwrap();
                        let index = answer[0];
                        assert_eq!(got, len(index.into()));
                        assert!(answer[..got].iter().all(|octet| *octet == index));
                        index.into()
                    })
                    .collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..48).filter(|index| index % 3 == number).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn one_who_can_not_be_answered_costs_the_others_nothing() {
        let mut batch = Batch::new();
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let clients: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        for client in &clients {
            client.send_to(b"?", ("127.0.0.1", port)).unwrap();
        }
        batch.receive(server.as_fd()).unwrap();
        assert_eq!(batch.received, 3);
        // Nobody may send to a broadcast address unasked.
        let broadcast = ptr::from_mut(&mut batch.slots[1].client).cast::<libc::sockaddr_in>();
        // SAFETY: the address of that slot is one of IPv4.
        #[allow(unsafe_code)]
        unsafe {
            (*broadcast).sin_addr.s_addr = u32::MAX;
        }
        batch.each(|_, _, out| {
            out[0] = b'!';
            1
        });
        batch.send(server.as_fd());
        for client in [&clients[0], &clients[2]] {
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1);
        }
    }
}
