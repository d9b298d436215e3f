//! The user's files: walking, reading, cutting and writing them.

pub mod apply;
mod beneath;
pub mod chunker;
pub mod complete;
mod confined;
pub mod excludes;
mod formats;
mod gear;
mod holes;
pub mod layout;
mod levels;
mod old_file;
pub mod open;
pub mod part_file;
pub mod pieces;
mod placing;
mod remove;
pub mod scan;
pub mod stat;
pub mod target;
pub mod torch;
pub mod xattrs;

pub use formats::npy_writer as npy;
pub use formats::safetensors_writer as safetensors;
