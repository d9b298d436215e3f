//! x
#[path = "it/hosts/mod.rs"]
mod hosts;
#[path = "it/support/mod.rs"]
#[allow(dead_code, unused)]
mod support;
