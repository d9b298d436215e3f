//! The integration tests: the library's layers together, and the program as a process.

mod attacks;
mod bit_flips;
mod cli_contract;
mod containers;
mod damage;
mod deltas;
mod edge_of_field;
mod encryption;
mod faults;
mod fence_model;
mod format_document;
mod fuzz;
mod gate;
mod hostile_repository;
mod load_back;
mod old_format;
mod races;
mod random_damage;
mod real_kill;
mod restore_into;
mod round_trip;
mod storage_conformance;
mod support;
mod tensor_cuts;
mod tensors;
mod tidy;
