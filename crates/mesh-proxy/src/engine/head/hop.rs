//! Fields that are for one hop only (RFC 9110, 7.6.1).

use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Naming these in `Connection` must not make them vanish: a backend would be told another length, host or client.
const KEPT: [&str; 5] =
    ["host", "content-length", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];

/// Removes the hop-by-hop fields, and those that `Connection` names.
pub(super) fn remove(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers)
            .filter(|name| !KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(name)))
            .filter_map(|name| name.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// [`remove`], and the one policy on underscores: such names pass, except those that a backend which turns `-`
/// into `_` (CGI, RFC 3875 4.1.18) would take for a field that this proxy vouches for.
pub(super) fn remove_from_request(headers: &mut HeaderMap) {
    remove(headers);
    if headers.keys().any(|name| name.as_str().contains('_')) {
        let spoofed: Vec<_> = headers.keys().filter(|name| is_spoof(name)).cloned().collect();
        for name in spoofed {
            headers.remove(name);
        }
    }
}

fn is_spoof(name: &HeaderName) -> bool {
    name.as_str().contains('_') && {
        let name = name.as_str().replace('_', "-");
        KEPT.contains(&name.as_str()) || HOP_BY_HOP.iter().any(|hop| hop.as_str() == name)
    }
}

/// Whether `Connection` names this option.
pub(super) fn connection_names(headers: &HeaderMap, option: &str) -> bool {
    tokens(headers).any(|token| token.eq_ignore_ascii_case(option))
}

fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}
