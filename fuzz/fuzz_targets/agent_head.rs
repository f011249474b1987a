//! Any bytes of a hostile child, through the agent's forwarder: what goes home is what the standard reads.
#![no_main]

use glidepath_agent::hub::fuzz::{PREFIX, call};
use glidepath_testkit::readers::check_passed;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let called = call(input);
    check_passed(input, PREFIX, &called.sent, called.answered);
});
