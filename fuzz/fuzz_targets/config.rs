//! Any text as a config file: taken whole, or refused with a place for each problem.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| glidepath_spawner::config::fuzz::config(input));
