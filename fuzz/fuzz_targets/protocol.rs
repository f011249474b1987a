//! Any bytes, as a peer might send them, into both ends of the link protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_tunnel::fuzz::protocol(input));
