//! Who asked, for those behind a proxy.

use super::Ends;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::io::Write;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Appends the client's address to `X-Forwarded-For` (one line, whatever came), and says protocol and host unless
/// a proxy before this one has.
pub(super) fn add(headers: &mut HeaderMap, ends: Ends, host: &HeaderValue) {
    let mut chain = Vec::with_capacity(64);
    for earlier in headers.get_all(FOR).iter().filter(|value| !value.is_empty()) {
        chain.extend_from_slice(earlier.as_bytes());
        chain.extend_from_slice(b", ");
    }
    let _ = write!(chain, "{}", ends.peer.ip());
    if let Ok(chain) = HeaderValue::from_bytes(&chain) {
        headers.insert(FOR, chain);
    }
    headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
    headers.entry(HOST).or_insert_with(|| host.clone());
}
