//! The packet path of DNS: any message, over UDP and TCP.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::answer(input));
