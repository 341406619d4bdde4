//! Bodies on their way through: streamed frame by frame, so that a slow reader slows the sender down.
//!
//! Trailers are dropped, which RFC 9110 (6.5.1) allows: what is only checked in the head can't come in after it.

use super::{
    access::{Outcome, Record},
    pool::{Connection, Pool},
};
use crate::Error;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::time::{Sleep, sleep};

/// How far a request's body has come; what the timeout of the response is counted from.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// Milliseconds after `start` at which something last moved.
    moved: AtomicU64,
    stage: AtomicU8,
}

const FLOWING: u8 = 0;
const AWAITING_CLIENT: u8 = 1;
const DONE: u8 = 2;

impl Progress {
    fn new(done: bool) -> Arc<Self> {
        let stage = AtomicU8::new(if done { DONE } else { FLOWING });
        Arc::new(Self { start: Instant::now(), moved: AtomicU64::new(0), stage })
    }

    fn moved_to(&self, stage: u8) {
        self.moved.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.stage.store(stage, Ordering::Release);
    }

    /// Counts from now on: an attempt begins.
    pub(super) fn restart(&self) {
        self.moved_to(self.stage.load(Ordering::Acquire));
    }

    /// When something last moved.
    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }

    /// Whether the client has sent all of it.
    pub(super) fn is_done(&self) -> bool {
        self.stage.load(Ordering::Acquire) == DONE
    }

    /// Whether it stands still because the client sends nothing.
    pub(super) fn awaits_client(&self) -> bool {
        self.stage.load(Ordering::Acquire) == AWAITING_CLIENT
    }
}

/// The body of a request, on its way to a backend.
#[derive(Debug)]
pub(super) struct Upload {
    incoming: Option<Incoming>,
    progress: Arc<Progress>,
}

impl Upload {
    pub(super) fn new(incoming: Option<Incoming>) -> Self {
        let progress = Progress::new(incoming.is_none());
        Self { incoming, progress }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let polled = poll_data(incoming, cx);
        match &polled {
            Poll::Pending => this.progress.stage.store(AWAITING_CLIENT, Ordering::Release),
            Poll::Ready(Some(Ok(_))) if !incoming.is_end_stream() => this.progress.moved_to(FLOWING),
            Poll::Ready(Some(Err(_))) => {}
            Poll::Ready(Some(Ok(_)) | None) => this.progress.moved_to(DONE),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of a response, on its way to the client. At its end the connection goes back to the pool.
#[derive(Debug)]
pub(super) struct Download {
    incoming: Incoming,
    /// The connection that it comes from, until its end.
    source: Option<(Connection, Pool)>,
    upload: Arc<Progress>,
    stall: Stall,
    record: Record,
}

impl Download {
    pub(super) fn new(
        incoming: Incoming,
        source: (Connection, Pool),
        upload: Arc<Progress>,
        limit: Duration,
        record: Record,
    ) -> Self {
        let mut this =
            Self { incoming, source: Some(source), upload, stall: Stall { limit, sleep: None }, record };
        if this.incoming.is_end_stream() {
            this.complete();
        }
        this
    }

    fn complete(&mut self) {
        self.record.outcome(Outcome::Complete);
        // With part of the request still to come, the connection can't be told to be in step.
        if let Some((connection, pool)) = self.source.take().filter(|_| self.upload.is_done()) {
            pool.put(connection);
        }
    }

    fn truncated(&mut self, err: Error) -> Error {
        tracing::debug!(%err, "a backend broke off in the middle of a response");
        self.record.outcome(Outcome::Truncated);
        self.source = None;
        err
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = poll_data(&mut this.incoming, cx) else {
            let err = ready!(this.stall.poll(cx));
            return Poll::Ready(Some(Err(this.truncated(err))));
        };
        this.stall.sleep = None;
        match frame {
            Some(Ok(frame)) => {
                this.record.sent(frame.data_ref().map_or(0, Bytes::len));
                if this.incoming.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(err)) => Poll::Ready(Some(Err(this.truncated(err.into())))),
            None => {
                this.complete();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Runs out when a backend sends nothing for too long.
#[derive(Debug)]
struct Stall {
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let limit = self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        sleep.as_mut().poll(cx).map(|()| Error::Timeout(limit))
    }
}

/// The next frame of data; others are passed over.
fn poll_data(
    incoming: &mut Incoming,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    loop {
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        if !matches!(&frame, Some(Ok(frame)) if !frame.is_data()) {
            return Poll::Ready(frame);
        }
    }
}

/// What a client is answered with.
#[derive(Debug)]
pub(super) enum Reply {
    /// A page of our own.
    Page(Full<Bytes>),
    /// What a backend says.
    Relayed(Box<Download>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Page(page) => Pin::new(page).poll_frame(cx).map_err(|never| match never {}),
            Self::Relayed(download) => Pin::new(download.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(page) => page.is_end_stream(),
            Self::Relayed(download) => download.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(page) => page.size_hint(),
            Self::Relayed(download) => download.size_hint(),
        }
    }
}
