//! The `anynode` program. Parses arguments; everything else is `anynode::app`.

fn main() {}
