//! The example scripts of the repository, for lists of them.

/// An example script, in the repository's folder `policies`.
pub struct Example {
    /// The file's name.
    pub name: &'static str,
    text: &'static str,
}

impl Example {
    /// What it does, in some words: how its first comment begins.
    pub fn summary(&self) -> &'static str {
        let comment = self.text.lines().find_map(|line| line.strip_prefix("-- "));
        let comment = comment.unwrap_or_default();
        comment.split([':', '.', ',']).next().unwrap_or_default()
    }
}

const fn example(name: &'static str, text: &'static str) -> Example {
    Example { name, text }
}

/// All of them, the simplest first.
pub const EXAMPLES: [Example; 8] = [
    example("on_demand.luau", include_str!("../on_demand.luau")),
    example("stride.luau", include_str!("../stride.luau")),
    example("density.luau", include_str!("../density.luau")),
    example("thrash_guard.luau", include_str!("../thrash_guard.luau")),
    example("hot_cold.luau", include_str!("../hot_cold.luau")),
    example("markov.luau", include_str!("../markov.luau")),
    example("learned.luau", include_str!("../learned.luau")),
    example("keep.luau", include_str!("../keep.luau")),
];
