//! The user's files: walking, reading, cutting and writing them.

pub mod chunker;
mod gear;
