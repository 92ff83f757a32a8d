//! Migration policies as Luau scripts, sandboxed and bounded.
