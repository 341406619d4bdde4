//! Questions that tell a loop.

use crate::{subject, wire::HEADER};

/// The one that is awaited.
pub(crate) const NUMBER: u128 = 0x00c0_ffee_0123_4567_89ab_cdef_dead_beef;
/// What follows its number.
pub(crate) const REST: &[u8] = b"\x09mesh-loop\x08internal\x00";

/// The input is a message.
pub fn loops(input: &[u8]) {
    let (looks_so, is_ours) = subject::probe(input, NUMBER);
    let label = input.get(HEADER..HEADER + 33);
    let rest = input.get(HEADER + 33..HEADER + 33 + REST.len());
    let expected =
        label.is_some_and(|label| label[0] == 32) && rest.is_some_and(|rest| rest.eq_ignore_ascii_case(REST));
    assert_eq!(looks_so, expected);
    let number = format!("{NUMBER:032x}");
    assert_eq!(is_ours, label.is_some_and(|label| label[1..].eq_ignore_ascii_case(number.as_bytes())));
}
