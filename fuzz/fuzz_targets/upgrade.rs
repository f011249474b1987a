//! Any bytes at the link's door.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_tunnel::fuzz::upgrade(input));
