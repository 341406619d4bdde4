//! The text of a `resolv.conf`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::resolv_conf(input));
