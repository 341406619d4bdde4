//! What comes on a connection.

use crate::subject;

/// The first octet says in how long pieces the rest, the octets of a connection, comes.
pub fn framing(input: &[u8]) {
    let Some((piece, octets)) = input.split_first() else { return };
    let mut expected = Vec::new();
    let mut rest = octets;
    while let Some(([l1, l0], behind)) = rest.split_first_chunk() {
        let Some((message, behind)) = behind.split_at_checked(u16::from_be_bytes([*l1, *l0]).into()) else {
            break;
        };
        expected.push(message);
        rest = behind;
    }
    assert_eq!(subject::framed(octets, usize::from(*piece) + 1), expected);
}
