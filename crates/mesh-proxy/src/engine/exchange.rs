//! One request and its response, in phases: refuse, resolve, rewrite, deliver, respond.

use super::{
    Ends, Engine,
    access::{Outcome, Record},
    body::{Download, Reply},
    head::{self, Refused},
    retry::{Answer, Delivery},
    tunnel,
};
use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{
    body::{Body, Incoming},
    upgrade::{self, OnUpgrade},
};
use mesh_model::Transport;
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tokio_util::sync::CancellationToken;

/// One exchange on a client's connection.
pub(super) struct Exchange {
    engine: Arc<Engine>,
    ends: Ends,
    /// Ends the client's connection, and a tunnel made of it.
    stop: CancellationToken,
}

impl Exchange {
    pub(super) const fn new(engine: Arc<Engine>, ends: Ends, stop: CancellationToken) -> Self {
        Self { engine, ends, stop }
    }

    /// The response to a request. There always is one.
    pub(super) async fn answer(self, mut request: Request<Incoming>) -> Response<Reply> {
        let mut record = Record::start(self.ends, request.method(), request.uri(), request.version());
        let client = upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = (!body.is_end_stream()).then_some(body);
        let Some(service) = self.engine.balancer.resolve(Transport::Tcp, self.ends.local) else {
            return page(StatusCode::NOT_FOUND, "No service here answers to this request.", false, record);
        };
        record.service(service.name());
        let head = match head::forward(head, self.ends, service.name(), body.is_some()) {
            Ok(head) => head,
            Err(Refused(status, why)) => return page(status, why, true, record),
        };
        let (upgrade, close) = (head.upgrade, head.close);
        let (engine, stop) = (Arc::clone(&self.engine), self.stop.clone());
        let parties = (&self.engine.pool, &self.engine.settings);
        let service_of = (&service, self.ends.peer.ip());
        let mut response = match Delivery::new(parties, service_of, head, body).run(&mut record).await {
            Ok(answer) => self.respond(answer, upgrade.then_some(client), record),
            Err(failure) => {
                tracing::debug!(service = service.name(), ?failure, "no backend answered");
                page(failure.status(), "No backend could answer this request.", false, record)
            }
        };
        let ends = || engine.retired.load(Relaxed) || stop.is_cancelled();
        if close || ends() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Passes a backend's response on.
    fn respond(self, answer: Answer, client: Option<OnUpgrade>, mut record: Record) -> Response<Reply> {
        let Answer { mut response, connection, upload } = answer;
        let status = response.status();
        if let Err(why) = head::respond(status, response.headers_mut(), client.is_some()) {
            tracing::debug!(addr = %connection.backend.addr, why, "a backend's response is refused");
            return page(StatusCode::BAD_GATEWAY, "The backend's response is not valid.", false, record);
        }
        record.status(status);
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) = (status, client) {
            record.outcome(Outcome::Tunnel);
            let backend = upgrade::on(&mut response);
            let drain = self.engine.settings.drain;
            self.engine.tasks.spawn(tunnel::run(client, backend, self.stop, drain, record));
            return response.map(|_| Reply::Page(Full::default()));
        }
        let source = (connection, self.engine.pool.clone());
        let limit = self.engine.settings.body_timeout;
        response.map(|body| Reply::Relayed(Box::new(Download::new(body, source, upload, limit, record))))
    }
}

/// An answer of our own.
fn page(status: StatusCode, text: &str, close: bool, mut record: Record) -> Response<Reply> {
    record.status(status);
    record.outcome(Outcome::Answered);
    let mut response = Response::new(Reply::Page(Full::new(Bytes::from(format!("{status}\n{text}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
