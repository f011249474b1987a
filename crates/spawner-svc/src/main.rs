//! The program `glidepath-spawner`.

fn main() {}
