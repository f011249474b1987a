//! Any bytes as a message of the link.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_tunnel::fuzz::frames(input));
