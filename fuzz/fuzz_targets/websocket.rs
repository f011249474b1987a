//! Any bytes after the upgrade, at either end.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_tunnel::fuzz::websocket(input));
