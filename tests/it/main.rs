//! The integration tests: the library's layers together, and the program as a process.

mod bit_flips;
mod cli_contract;
mod damage;
mod faults;
mod power_cut;
mod round_trip;
mod storage_conformance;
mod support;
