//! The integration tests: the library's layers together, and the program as a process.

mod cli_contract;
mod storage_conformance;
