//! Any history of lanes between two honest ends.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_tunnel::fuzz::resume(input));
