//! The `planish` program.
fn main() {}
