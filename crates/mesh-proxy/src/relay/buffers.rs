//! Buffers that connections have only while bytes pass: an idle one costs none.

use std::cell::RefCell;

/// As much as a socket usually has ready.
const SIZE: usize = 64 * 1024;
/// As many are kept for a thread's next ones.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// One with whatever was in it.
pub(super) fn take() -> Box<[u8]> {
    let kept = FREE.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
}

/// Keeps it for the next.
pub(super) fn give(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(buffer);
        }
    });
}
