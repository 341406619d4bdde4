//! Heads of messages: which are refused, and how the others are rewritten. Pure.
//!
//! hyper has parsed them: it refuses lengths that differ or are malformed, and encodings that don't end in
//! `chunked`. If both a length and an encoding came it hides the length, which is why [`check`] asks to close the
//! connection after every chunked request (RFC 9112, 6.1).

mod forwarded;
mod hop;
#[cfg(test)]
mod tests;

use super::Ends;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE},
    request,
    uri::{Authority, PathAndQuery},
};

/// What a client asked, fit to be sent to a backend. It says nothing of the body but its length.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// The client asks for another protocol.
    pub(super) upgrade: bool,
    /// The client's connection must not be used again.
    pub(super) close: bool,
}

/// Why a request is refused, and with which status.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) &'static str);

const fn bad(why: &'static str) -> Refused {
    Refused(StatusCode::BAD_REQUEST, why)
}

/// Checks a request's head and rewrites it for a backend: origin form, no hop-by-hop fields, forwarding fields
/// for the client and the address it reached. `fallback` is the host of those who name none (HTTP/1.0).
pub(super) fn forward(
    head: request::Parts,
    ends: Ends,
    fallback: &str,
    has_body: bool,
) -> Result<RequestHead, Refused> {
    let chunked = check(&head)?;
    let host = host(&head)?;
    let request::Parts { method, uri, version, mut headers, .. } = head;
    let upgrade = upgrade_wanted(version, &headers, has_body);
    hop::remove_from_request(&mut headers);
    if let Some(protocol) = &upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    let host = match host {
        Some(host) => host,
        None => HeaderValue::from_str(fallback).map_err(|_| bad("no host"))?,
    };
    forwarded::add(&mut headers, ends, &host);
    headers.insert(HOST, host);
    let uri = Uri::from(uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/")));
    Ok(RequestHead { method, uri, headers, upgrade: upgrade.is_some(), close: chunked })
}

/// Whether the body is chunked, in a message whose framing has one meaning only.
fn check(head: &request::Parts) -> Result<bool, Refused> {
    if head.method == Method::CONNECT {
        return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not offered"));
    }
    if head.uri.scheme_str().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        return Err(bad("only http can be asked for here"));
    }
    framing(&head.headers).map_err(bad)
}

/// Whether a message is chunked; an error if its length can be read in more than one way.
fn framing(headers: &HeaderMap) -> Result<bool, &'static str> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (encoding, length) = (encodings.next(), lengths.next());
    if encodings.next().is_some() || encoding.is_some_and(|e| !e.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("the transfer encoding is not just chunked");
    }
    if lengths.next().is_some() || length.is_some_and(|l| !l.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err("there is more than one length");
    }
    if encoding.is_some() && length.is_some() {
        return Err("there are both a length and a transfer encoding");
    }
    Ok(encoding.is_some())
}

/// The host that is asked for: the `Host` field, which an absolute target must agree with (RFC 9112, 3.2).
fn host(head: &request::Parts) -> Result<Option<HeaderValue>, Refused> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(bad("there is more than one host"));
    }
    let Some(host) = host else {
        let old = head.version < Version::HTTP_11;
        return if old { Ok(None) } else { Err(bad("there is no host")) };
    };
    let valid = host.as_bytes().is_empty()
        || Authority::try_from(host.as_bytes()).is_ok_and(|authority| !authority.as_str().contains('@'));
    if !valid {
        return Err(bad("the host is no host"));
    }
    match head.uri.authority() {
        Some(target) if !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(bad("the target and the host disagree"))
        }
        _ => Ok(Some(host.clone())),
    }
}

/// The protocol that the client wants to change to (RFC 9110, 7.8). Changing to HTTP/2 is a matter between the
/// client and us (RFC 9113, 3.1 gave it up), and a request with a body is answered as it stands.
fn upgrade_wanted(version: Version, headers: &HeaderMap, has_body: bool) -> Option<HeaderValue> {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let (protocol, more) = (protocols.next()?, protocols.next());
    let h2c = |name: &str| name.trim().eq_ignore_ascii_case("h2c");
    let wanted = version >= Version::HTTP_11
        && !has_body
        && more.is_none()
        && hop::connection_names(headers, "upgrade")
        && protocol.to_str().is_ok_and(|p| !p.split(',').any(h2c));
    wanted.then(|| protocol.clone())
}

/// Rewrites a response's head for the client; an error if it can't be trusted.
///
/// # Errors
/// What is wrong with it: framing that has more than one meaning, or a change of protocol nobody asked for.
pub(super) fn respond(
    status: StatusCode,
    headers: &mut HeaderMap,
    upgrade_wanted: bool,
) -> Result<(), &'static str> {
    let chunked = framing(headers)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = headers.get(UPGRADE).cloned().filter(|_| upgrade_wanted);
        let protocol = protocol.ok_or("it changes to a protocol that nobody asked for")?;
        hop::remove(headers);
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
        return Ok(());
    }
    hop::remove(headers);
    if chunked || status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    Ok(())
}

/// Whether a request may be sent again though a backend may have seen it (RFC 9110, 9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}
