//! Any text as a ticket: only the signed one is one.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_spawner::arrivals::fuzz::ticket(input));
