//! The repository: packs, index, trees, snapshots and the one order in which they are published.
