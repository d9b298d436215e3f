//! The integration tests: the library's layers together, and the program as a process.

mod cli_contract;
mod format_document;
mod storage_conformance;
mod tidy;
