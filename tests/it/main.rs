//! The integration tests: the library's layers together, and the program as a process.

mod bit_flips;
mod cli_contract;
mod containers;
mod damage;
mod deltas;
mod edge_of_field;
mod environment;
mod faults;
mod fence_model;
mod format_document;
mod gate;
mod load_back;
mod old_format;
mod races;
mod random_damage;
mod real_kill;
mod restore_into;
mod round_trip;
mod small_disks;
mod storage_conformance;
mod support;
mod syscalls;
mod tensor_cuts;
mod tensors;
mod tidy;
