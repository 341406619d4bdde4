//! What is refused and what is rewritten. Cases of ambiguous messages that hyper refuses by itself are shown over
//! sockets.

use super::*;
use http::Request;

fn ends() -> Ends {
    Ends { peer: "192.0.2.7:4711".parse().unwrap(), local: "10.0.0.1:80".parse().unwrap() }
}

fn head(text: &str) -> request::Parts {
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let mut request = Request::builder().method(first.next().unwrap()).uri(first.next().unwrap());
    if first.next() == Some("HTTP/1.0") {
        request = request.version(Version::HTTP_10);
    }
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

fn forwarded(text: &str) -> RequestHead {
    forward(head(text), ends(), "web", false).unwrap_or_else(|e| panic!("{text}: {e:?}"))
}

fn refused(text: &str) -> StatusCode {
    forward(head(text), ends(), "web", false).expect_err(text).0
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    for lines in [
        "Content-Length: 5\nTransfer-Encoding: chunked",
        "Content-Length: 5\nContent-Length: 5",
        "Content-Length: 5,5",
        "Content-Length: +5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
    ] {
        assert_eq!(
            refused(&format!("POST / HTTP/1.1\nHost: a\n{lines}")),
            StatusCode::BAD_REQUEST,
            "{lines}"
        );
    }
    assert!(forwarded("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked").close);
    assert!(!forwarded("POST / HTTP/1.1\nHost: a\nContent-Length: 5").close);
}

#[test]
fn there_is_one_host_and_the_target_agrees_with_it() {
    for text in [
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\nHost: a\nHost: a",
        "GET / HTTP/1.1\nHost: user@a",
        "GET / HTTP/1.1\nHost: a b",
        "GET http://b/ HTTP/1.1\nHost: a",
        "GET https://a/ HTTP/1.1\nHost: a",
    ] {
        assert_eq!(refused(text), StatusCode::BAD_REQUEST, "{text}");
    }
    assert_eq!(refused("CONNECT a:80 HTTP/1.1\nHost: a:80"), StatusCode::METHOD_NOT_ALLOWED);
    let absolute = forwarded("GET http://A:81/x?y HTTP/1.1\nHost: a:81");
    assert_eq!(
        (absolute.uri.to_string().as_str(), absolute.headers[HOST].as_bytes()),
        ("/x?y", &b"a:81"[..])
    );
    assert_eq!(forwarded("GET http://a HTTP/1.1\nHost: a").uri, "/");
    assert_eq!(forwarded("OPTIONS * HTTP/1.1\nHost: a").uri, "*");
    assert_eq!(forwarded("GET / HTTP/1.0").headers[HOST], "web");
    assert_eq!(forwarded("GET / HTTP/1.1\nHost: nginx_service").headers[HOST], "nginx_service");
}

#[test]
fn hop_by_hop_fields_end_here_but_not_those_that_carry_meaning() {
    let head = forwarded(
        "GET / HTTP/1.1\nHost: a\nConnection: close, X-Mine, Host, Content-Length\nConnection: x-forwarded-for\n\
         X-Mine: 1\nKeep-Alive: 5\nTE: trailers\nTrailer: x\nProxy-Connection: keep-alive\nUpgrade: foo\n\
         Content-Length: 0\nX-Forwarded-For: 198.51.100.1\nX-Other: 2",
    );
    let mut names: Vec<_> = head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["content-length", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-other"]
    );
    assert_eq!(head.headers["x-forwarded-for"], "198.51.100.1, 192.0.2.7");
}

#[test]
fn a_chain_of_proxies_is_kept_in_order_and_in_one_line() {
    let head = forwarded(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 1.1.1.1, 2.2.2.2\nX-Forwarded-For: 3.3.3.3\n\
         X-Forwarded-Proto: https\nX-Forwarded-Host: shop",
    );
    let chain: Vec<_> = head.headers.get_all("x-forwarded-for").iter().collect();
    assert_eq!(chain, ["1.1.1.1, 2.2.2.2, 3.3.3.3, 192.0.2.7"]);
    assert_eq!(
        (&head.headers["x-forwarded-proto"], &head.headers["x-forwarded-host"]),
        (&HeaderValue::from_static("https"), &HeaderValue::from_static("shop"))
    );
}

#[test]
fn names_with_an_underscore_pass_unless_they_pose_as_ours() {
    let head = forwarded("GET / HTTP/1.1\nHost: a\nX_Forwarded_For: 6.6.6.6\ncontent_length: 5\nmy_field: 1");
    assert!(!head.headers.contains_key("x_forwarded_for") && !head.headers.contains_key("content_length"));
    assert_eq!(head.headers["my_field"], "1");
}

#[test]
fn an_upgrade_is_passed_on_if_it_is_one() {
    let head = forwarded("GET / HTTP/1.1\nHost: a\nConnection: keep-alive, Upgrade\nUpgrade: websocket");
    assert!(head.upgrade);
    assert_eq!(
        (&head.headers[CONNECTION], &head.headers[UPGRADE]),
        (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
    );
    for text in [
        "GET / HTTP/1.1\nHost: a\nUpgrade: websocket",
        "GET / HTTP/1.0\nHost: a\nConnection: upgrade\nUpgrade: websocket",
        "GET / HTTP/1.1\nHost: a\nConnection: upgrade, http2-settings\nUpgrade: h2c\nHTTP2-Settings: x",
    ] {
        let head = forwarded(text);
        assert!(!head.upgrade && head.headers.get(UPGRADE).is_none() && head.headers.len() == 4, "{text}");
    }
}

fn responded(status: u16, lines: &[(&'static str, &'static str)], upgrade: bool) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    respond(StatusCode::from_u16(status).unwrap(), &mut headers, upgrade).ok().map(|()| headers)
}

#[test]
fn a_response_is_believed_only_if_it_can_be_read_in_one_way() {
    assert!(responded(200, &[("content-length", "5"), ("transfer-encoding", "chunked")], false).is_none());
    assert!(responded(200, &[("content-length", "5, 6")], false).is_none());
    assert!(responded(200, &[("transfer-encoding", "gzip")], false).is_none());
    assert!(responded(101, &[("upgrade", "websocket")], false).is_none());
    let tunnel = responded(101, &[("upgrade", "websocket"), ("connection", "Upgrade")], true).unwrap();
    assert_eq!(tunnel.len(), 2);
    let plain =
        responded(200, &[("connection", "close, x-a"), ("x-a", "1"), ("server", "nginx")], true).unwrap();
    assert_eq!(plain.len(), 1);
    assert!(responded(204, &[("content-length", "0")], false).unwrap().is_empty());
    assert_eq!(responded(304, &[("content-length", "9")], false).unwrap().len(), 1);
}
