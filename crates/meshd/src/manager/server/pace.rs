//! Answers that nobody takes: a member that does not read costs a bounded amount of memory, for a bounded time.
//!
//! HTTP/2 asks for more of an answer only when the peer has room for it, so that an answer whose next piece is not asked
//! for is one that is not read. Nothing but its connection's end takes back what is buffered for it: the peer may answer
//! pings for ever. An agent whose connection ends comes back, and is told what it missed.

use axum::body::{Body, Bytes};
use http::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Who takes nothing of an answer for so long does not read it.
pub(super) const STALLED: Duration = Duration::from_secs(10);
/// Answers are handed over in pieces of at most so many bytes: all that is buffered beyond what the peer has room for.
const PIECE: usize = 16 << 10;

/// The answers on one connection.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Duration,
    answers: Mutex<Answers>,
    /// Something waits, after nothing did.
    waits: Notify,
}

#[derive(Debug, Default)]
struct Answers {
    next: u64,
    /// Those of which a piece was handed over and the next was not asked for, and since when.
    waiting: BTreeMap<u64, Instant>,
}

/// The body of one of them.
struct Paced {
    body: Body,
    /// What is left of a piece of the body.
    rest: Bytes,
    number: u64,
    pace: Arc<Pace>,
}

impl Pace {
    /// Of a connection whose peer may take nothing of an answer for so long; [`STALLED`] but in tests.
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        Arc::new(Self { patience, answers: Mutex::default(), waits: Notify::new() })
    }

    /// The same answer, watched.
    pub(super) fn watch(self: &Arc<Self>, answer: Response<Body>) -> Response<Body> {
        let number = {
            let mut answers = self.lock();
            answers.next += 1;
            answers.next
        };
        answer.map(|body| Body::new(Paced { body, rest: Bytes::new(), number, pace: Arc::clone(self) }))
    }

    /// Waits until an answer is not read.
    pub(super) async fn stalled(&self) {
        loop {
            let oldest = self.lock().waiting.values().min().copied();
            match oldest {
                None => self.waits.notified().await,
                Some(since) if since.elapsed() >= self.patience => return,
                Some(since) => sleep_until(since + self.patience).await,
            }
        }
    }

    fn handed_over(&self, number: u64) {
        let mut answers = self.lock();
        answers.waiting.insert(number, Instant::now());
        if answers.waiting.len() == 1 {
            self.waits.notify_one();
        }
    }

    fn asked_for(&self, number: u64) {
        self.lock().waiting.remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.pace.asked_for(self.number);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context))
                .map(|frame| frame.map(Frame::into_data))
            {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
                Some(Err(err)) => return Poll::Ready(Some(Err(err))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.pace.handed_over(self.number);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.pace.asked_for(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tokio::time::timeout;

    fn answer(pace: &Arc<Pace>, bytes: usize) -> Body {
        pace.watch(Response::new(Body::from(vec![7; bytes]))).into_body()
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_is_noticed() {
        let pace = Pace::new(Duration::from_millis(50));
        let mut slow = answer(&pace, 3 * PIECE);
        assert_eq!(slow.size_hint().exact(), Some(3 * PIECE as u64));
        assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
        // Another one that is read does not hide it.
        assert_eq!(answer(&pace, 100).collect().await.unwrap().to_bytes().len(), 100);
        timeout(Duration::from_secs(20), pace.stalled()).await.unwrap();
        let before = *pace.lock().waiting.values().next().unwrap();
        slow.frame().await.unwrap().unwrap();
        assert!(before < *pace.lock().waiting.values().next().unwrap(), "it reads, if slowly");
    }

    #[tokio::test]
    async fn who_has_read_all_may_be_silent() {
        let pace = Pace::new(STALLED);
        let whole = answer(&pace, 3 * PIECE + 1).collect().await.unwrap().to_bytes();
        assert_eq!(whole.len(), 3 * PIECE + 1);
        let mut given_up = answer(&pace, 2 * PIECE);
        given_up.frame().await.unwrap().unwrap();
        drop(given_up);
        let nothing_yet = futures_util::stream::pending::<Result<Bytes, std::convert::Infallible>>();
        let mut stream = pace.watch(Response::new(Body::from_stream(nothing_yet)));
        assert!(timeout(Duration::from_millis(1), stream.body_mut().frame()).await.is_err());
        assert!(pace.lock().waiting.is_empty());
    }
}
