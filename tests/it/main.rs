//! The integration tests: the library's layers together, and the program as a process.

mod bit_flips;
mod cli_contract;
mod damage;
mod edge_of_field;
mod faults;
mod format_document;
mod gate;
mod old_format;
mod power_cut;
mod races;
mod real_kill;
mod restore_into;
mod round_trip;
mod storage_conformance;
mod support;
mod tidy;
