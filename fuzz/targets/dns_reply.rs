//! What an upstream resolver may send back.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::reply(input));
