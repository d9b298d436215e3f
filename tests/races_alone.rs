//! x
#[path = "it/races.rs"]
mod races;
#[path = "it/support/mod.rs"]
#[allow(dead_code, unused)]
mod support;
