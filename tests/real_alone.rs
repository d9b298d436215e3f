//! x
#[path = "it/real_hosts.rs"]
mod real_hosts;
#[path = "it/support/mod.rs"]
#[allow(dead_code, unused)]
mod support;
