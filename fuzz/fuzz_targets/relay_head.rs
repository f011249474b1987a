//! Any bytes from a Hub's proxy, through the relay: what reaches a server is what the standard reads.
#![no_main]

use glidepath_spawner::proxy::relay::fuzz::visit;
use glidepath_testkit::readers::check_passed;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let visited = visit(input);
    check_passed(input, "", &visited.sent, visited.answered);
});
