//! Questions that tell a loop.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::loops(input));
