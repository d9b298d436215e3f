//! The `ckpt` program.
fn main() {}
