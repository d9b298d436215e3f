//! The libFuzzer runner: each binary of this crate runs the target that it is called like.

#![no_main]

#[expect(dead_code, reason = "the other runner measures memory, and makes the corpus")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (targets::named(env!("CARGO_BIN_NAME")).run)(bytes);
});
