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

/// All of them, the simplest first.
pub const EXAMPLES: [Example; 8] = [
    Example {
        name: "on_demand.luau",
        text: include_str!("../on_demand.luau"),
    },
    Example {
        name: "stride.luau",
        text: include_str!("../stride.luau"),
    },
    Example {
        name: "density.luau",
        text: include_str!("../density.luau"),
    },
    Example {
        name: "thrash_guard.luau",
        text: include_str!("../thrash_guard.luau"),
    },
    Example {
        name: "hot_cold.luau",
        text: include_str!("../hot_cold.luau"),
    },
    Example {
        name: "markov.luau",
        text: include_str!("../markov.luau"),
    },
    Example {
        name: "learned.luau",
        text: include_str!("../learned.luau"),
    },
    Example {
        name: "keep.luau",
        text: include_str!("../keep.luau"),
    },
];
