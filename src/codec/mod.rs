//! Bytes to bytes, no I/O: how the content of chunks is coded in frames.
