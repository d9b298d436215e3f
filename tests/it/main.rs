//! The integration tests: the library's layers together, and the program as a process.

mod cli_contract;
mod power_cut;
mod storage_conformance;
mod support;
