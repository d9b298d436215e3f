//! The user's files: walking, reading, cutting and writing them.

pub mod apply;
pub mod chunker;
pub mod complete;
mod confined;
pub mod excludes;
mod formats;
mod gear;
pub mod layout;
pub mod open;
pub mod page_cache;
pub mod part_file;
mod placing;
mod remove;
pub mod scan;
pub mod stat;
pub mod target;
pub mod xattrs;
