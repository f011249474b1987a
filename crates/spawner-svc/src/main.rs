//! spawner-svc
fn main() {}
