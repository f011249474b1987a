//! Relay and Hub API forwarding.
