//! The user's files: walking, reading, cutting and writing them.
