//! What a user can ask for, a function with Options and a Report each.
