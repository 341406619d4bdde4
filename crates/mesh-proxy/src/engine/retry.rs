//! From a request to the head of its response, over as many backends as it takes.
//!
//! What may be tried again, and where (RFC 9110, 9.2.2; RFC 9112, 9.3.1):
//! - a connect that failed, on the next backend, each once;
//! - a request of which nothing was written, on a fresh connection;
//! - an idempotent request without a body that got no byte of a response: on a fresh connection to the same backend
//!   if the connection was a kept one, else once on the next backend.

use super::{
    access::Record,
    body::{Progress, Upload},
    head::{RequestHead, is_idempotent},
    pool::{Connection, Pool},
};
use crate::{balance::Balanced, routes::Backend, settings::Settings};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use mesh_model::EndpointId;
use std::{mem, net::IpAddr, sync::Arc, time::Instant};
use tokio::{pin, select, time::sleep_until};

/// A response whose head has come.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) upload: Arc<Progress>,
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The service has no healthy backend.
    NoBackend,
    /// No backend could be connected to.
    Unreachable,
    /// A backend hung up, or answered with what is no HTTP.
    Broken,
    /// A backend didn't answer in time.
    Timeout,
    /// The client didn't send the rest of its body in time.
    SlowClient,
}

impl Failure {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::NoBackend | Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::SlowClient => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// A request and what has become of it so far.
pub(super) struct Delivery<'a> {
    pool: &'a Pool,
    settings: &'a Settings,
    service: &'a Balanced,
    client: IpAddr,
    head: RequestHead,
    replayable: bool,
    /// What is sent next, unless it is made from the head.
    ready: Option<Request<Upload>>,
    tried: Vec<EndpointId>,
    replayed: bool,
}

/// What became of one attempt.
enum Attempt {
    Answered(Box<Answer>),
    /// Nothing was written: the connection had been closed.
    Unsent(Box<Request<Upload>>),
    /// It may have arrived, and there was no byte of a response.
    Lost,
    Failed(Failure),
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        (pool, settings): (&'a Pool, &'a Settings),
        (service, client): (&'a Balanced, IpAddr),
        mut head: RequestHead,
        body: Option<Incoming>,
    ) -> Self {
        let replayable = body.is_none() && is_idempotent(&head.method);
        let ready = (!replayable).then(|| {
            let headers = mem::take(&mut head.headers);
            let mut request = Request::new(Upload::new(body));
            (*request.method_mut(), *request.uri_mut()) = (head.method.clone(), head.uri.clone());
            *request.headers_mut() = headers;
            request
        });
        Self { pool, settings, service, client, head, replayable, ready, tried: Vec::new(), replayed: false }
    }

    /// Sends the request until a backend has answered or none is left to ask.
    pub(super) async fn run(mut self, record: &mut Record) -> Result<Answer, Failure> {
        let mut backend = self.service.next(self.client, &[]).ok_or(Failure::NoBackend)?;
        let (mut fresh, mut retries) = (false, 0);
        loop {
            record.backend(backend.addr, retries);
            retries += 1;
            let connection = match self.pool.lease(backend, fresh).await {
                Ok(connection) => connection,
                Err(err) => {
                    tracing::debug!(service = self.service.name(), addr = %backend.addr, %err, "backend unreachable");
                    backend = self.next_after(backend).ok_or(Failure::Unreachable)?;
                    continue;
                }
            };
            let reused = connection.reused;
            match self.attempt(connection).await {
                Attempt::Answered(answer) => return Ok(*answer),
                Attempt::Unsent(request) => self.ready = Some(*request),
                Attempt::Lost if self.replayable && (reused || !self.replayed) => self.replayed |= !reused,
                Attempt::Lost => return Err(Failure::Broken),
                Attempt::Failed(failure) => return Err(failure),
            }
            fresh = true;
            if !reused {
                backend = self.next_after(backend).ok_or(Failure::Broken)?;
            }
        }
    }

    fn next_after(&mut self, backend: Backend) -> Option<Backend> {
        self.tried.push(backend.endpoint);
        self.service.next(self.client, &self.tried)
    }

    async fn attempt(&mut self, mut connection: Connection) -> Attempt {
        let request = self.ready.take().unwrap_or_else(|| self.request());
        let upload = request.body().progress();
        upload.restart();
        let reads = connection.link.reads();
        let answered = {
            let sent = connection.sender.try_send_request(request);
            pin!(sent);
            loop {
                let deadline = upload.last() + self.limit(&upload);
                select! {
                    answered = sent.as_mut() => break answered,
                    () = sleep_until(deadline.into()) => {
                        if upload.last() + self.limit(&upload) <= Instant::now() {
                            let slow_client = upload.awaits_client();
                            return Attempt::Failed(if slow_client { Failure::SlowClient } else { Failure::Timeout });
                        }
                    }
                }
            }
        };
        match answered {
            Ok(response) => Attempt::Answered(Box::new(Answer { response, connection, upload })),
            Err(mut err) => {
                tracing::debug!(addr = %connection.backend.addr, err = %err.error(), "no response");
                match err.take_message() {
                    Some(request) => Attempt::Unsent(Box::new(request)),
                    None if connection.link.reads() == reads => Attempt::Lost,
                    None => Attempt::Failed(Failure::Broken),
                }
            }
        }
    }

    fn limit(&self, upload: &Progress) -> std::time::Duration {
        if upload.awaits_client() { self.settings.body_timeout } else { self.settings.response_timeout }
    }

    fn request(&self) -> Request<Upload> {
        let mut request = Request::new(Upload::new(None));
        (*request.method_mut(), *request.uri_mut()) = (self.head.method.clone(), self.head.uri.clone());
        *request.headers_mut() = self.head.headers.clone();
        request
    }
}
