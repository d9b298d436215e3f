//! What files of PyTorch say of a checkpoint beside the layout: its step, its files, how many tensors it has.

pub use super::formats::dcp::{DcpFile, DcpMetadata, dcp_metadata};
pub use super::formats::torch_facts::{TorchFacts, torch_facts};
