//! What the daemon is told again and again.

/// Something that is told when it is news.
#[derive(Debug)]
pub(super) struct Telling<T>(Option<T>);

impl<T: Clone + Default + PartialEq> Telling<T> {
    /// To nobody yet: an older daemon would not understand.
    pub(super) fn new() -> Self {
        Self(None)
    }

    /// Another daemon is there. It may be of a version that does not understand this.
    pub(super) fn meet(&mut self) {
        self.0 = None;
    }

    /// It does.
    pub(super) fn begin(&mut self) {
        self.0 = Some(T::default());
    }

    /// What is to be told, if that is something else than was told last.
    pub(super) fn news(&mut self, now: T) -> Option<T> {
        let told = self.0.as_mut().filter(|told| **told != now)?;
        told.clone_from(&now);
        Some(now)
    }

    /// What was told last was not heard.
    pub(super) fn forget(&mut self) {
        self.0 = self.0.take().map(|_| T::default());
    }
}
