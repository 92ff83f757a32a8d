//! The workloads of the embedded guest: names, parameters, defaults, limits.
//!
//! The guest compiles this very file too, so what the host offers and what the guest understands
//! cannot differ. It therefore uses `core` only.

/// A program that the embedded guest can run.
#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    /// Which program it is; the guest matches on it.
    pub kind: Kind,
    /// The name that users write.
    pub name: &'static str,
    /// One line of explanation.
    pub summary: &'static str,
    /// All parameters it takes.
    pub params: &'static [Param],
}

/// A parameter of a workload: a number, written in decimal, or one of a few words.
#[derive(Debug, PartialEq, Eq)]
pub struct Param {
    /// The name that users write before the `=`.
    pub name: &'static str,
    /// One line of explanation.
    pub summary: &'static str,
    /// Value if not given.
    pub default: u64,
    /// Smallest allowed value.
    pub min: u64,
    /// Largest allowed value.
    pub max: u64,
    /// If not empty, words for the values from 0, to be written instead of the number.
    pub choices: &'static [&'static str],
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the catalogue's summaries say it")]
pub enum Kind {
    VecAdd,
    Stream,
    PingPong,
    Relay,
    Gather,
    Chase,
    Bfs,
    MatMul,
    SpMv,
    Churn,
    Stencil,
    Join,
    Sort,
    Zipf,
    Tree,
    Phases,
    Torture,
    Recover,
    SelfTest,
    Agent,
    Crash,
}

/// Why a parameter's value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadValue {
    /// It is no number without a sign, nor one of the parameter's words.
    NotANumber,
    /// It is a number that is too small or too large.
    OutOfRange,
}

impl Param {
    /// Reads a value: a number with an optional suffix `K`, `M` or `G` (powers of 1024), or one of
    /// the parameter's words.
    pub fn parse(&self, text: &str) -> Result<u64, BadValue> {
        let value = match self.choices.iter().position(|word| *word == text) {
            Some(position) => position as u64,
            None => parse_number(text)?,
        };
        if (self.min..=self.max).contains(&value) {
            Ok(value)
        } else {
            Err(BadValue::OutOfRange)
        }
    }
}

fn parse_number(text: &str) -> Result<u64, BadValue> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // `u64::from_str` also takes a plus sign, and calls too many digits the same error as none.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadValue::NotANumber);
    }
    let number: u64 = digits.parse().map_err(|_| BadValue::OutOfRange)?;
    number.checked_mul(1 << shift).ok_or(BadValue::OutOfRange)
}

/// All workloads; the first is the default.
pub static WORKLOADS: &[Workload] = &[
    Workload {
        kind: Kind::VecAdd,
        name: "vecadd",
        summary: "the CPUs fill two vectors, the accelerators add them, the CPUs check the sums",
        params: &[
            number(
                "n",
                "elements of each of the three vectors",
                1 << 20,
                1,
                ELEMENTS_MAX,
            ),
            number(
                "rounds",
                "additions, each using the last one's result",
                4,
                1,
                ROUNDS_MAX,
            ),
            hint("what the accelerators are told about the vectors, for policies with `hints`"),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Stream,
        name: "stream",
        summary: "copy, scale and add on the accelerators, with the CPUs writing the input of each round",
        params: &[
            number(
                "n",
                "elements of each of the three vectors",
                512 << 10,
                1,
                ELEMENTS_MAX,
            ),
            number("rounds", "repetitions", 4, 1, ROUNDS_MAX),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::PingPong,
        name: "pingpong",
        summary: "CPUs and accelerators take turns in changing the same pages",
        params: &[
            number("pages", "shared pages", 64, 1, PAGES_MAX),
            number("rounds", "turns of each side", 20, 1, ROUNDS_MAX),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Relay,
        name: "relay",
        summary: "accelerators hand the same pages on to each other, without CPUs in between",
        params: &[
            number("pages", "shared pages", 64, 1, PAGES_MAX),
            number(
                "turns",
                "turns of all accelerators together",
                20,
                1,
                ROUNDS_MAX,
            ),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Gather,
        name: "gather",
        summary: "random gathers and scatters on the accelerators",
        params: &[
            number(
                "n",
                "elements gathered, at most as many scattered",
                256 << 10,
                1,
                ELEMENTS_MAX,
            ),
            number("len", "elements of the table", 256 << 10, 1, ELEMENTS_MAX),
            hint("what the accelerators are told about the table, for policies with `hints`"),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Chase,
        name: "chase",
        summary: "accelerators and CPUs follow the same random cycle of pointers",
        params: &[
            number("len", "elements of the cycle", 256 << 10, 1, ELEMENTS_MAX),
            number("steps", "steps along the cycle", 500_000, 1, 1 << 40),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Bfs,
        name: "bfs",
        summary: "breadth-first search of a random graph, level by level on the accelerators",
        params: &[
            number(
                "vertices",
                "vertices of the graph",
                64 << 10,
                1,
                ELEMENTS_MAX,
            ),
            number("degree", "mean number of edges out of a vertex", 8, 1, 1024),
            hint("what the accelerators are told about the graph, for policies with `hints`"),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::MatMul,
        name: "matmul",
        summary: "dense matrix product on each accelerator, checked on the CPUs",
        params: &[
            number("n", "rows and columns of each matrix", 256, 1, 4096),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::SpMv,
        name: "spmv",
        summary: "sparse matrix times vector on each accelerator, checked on the CPUs",
        params: &[
            number(
                "rows",
                "rows and columns of the matrix",
                64 << 10,
                1,
                ELEMENTS_MAX,
            ),
            number("degree", "mean number of entries of a row", 8, 1, 1024),
            hint("what the accelerators are told about the matrix, for policies with `hints`"),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Churn,
        name: "churn",
        summary: "pages are allocated, used on both sides, freed and allocated again",
        params: &[
            number(
                "rounds",
                "passes over the areas of each vCPU",
                20,
                1,
                ROUNDS_MAX,
            ),
            number("pages", "pages in use at most", 2048, 1, PAGES_MAX),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Stencil,
        name: "stencil",
        summary: "each row of a grid becomes the sum of its neighbours, step by step on the accelerators",
        params: &[
            number(
                "n",
                "rows and columns of each of the two grids",
                512,
                3,
                1 << 16,
            ),
            number("steps", "steps, fewer than half of the rows", 8, 1, 32),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Join,
        name: "join",
        summary: "the accelerators build a hash table of one table's rows and look up those of another one",
        params: &[
            number("n", "rows of the first table", 128 << 10, 1, ELEMENTS_MAX),
            number(
                "probes",
                "rows of the second table",
                256 << 10,
                1,
                ELEMENTS_MAX,
            ),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Sort,
        name: "sort",
        summary: "radix sort: the CPUs count, the accelerators move the keys",
        params: &[
            number("n", "keys", 256 << 10, 1, ELEMENTS_MAX),
            number("digits", "digits of a key, of 4 bits each", 4, 1, 15),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Zipf,
        name: "zipf",
        summary: "key-value store: the accelerators look up keys of which few are popular, the CPUs change some",
        params: &[
            number("len", "keys in the store", 512 << 10, 1, ELEMENTS_MAX),
            number("n", "requests of a round", 32 << 10, 1, ELEMENTS_MAX),
            number("rounds", "rounds", 8, 1, ROUNDS_MAX),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Tree,
        name: "tree",
        summary: "the accelerators walk through a tree with nodes all over memory",
        params: &[
            number(
                "nodes",
                "nodes of the tree, of 64 bytes each",
                64 << 10,
                1,
                ELEMENTS_MAX / 8,
            ),
            number(
                "walks",
                "walks, each between a node and the root",
                16 << 10,
                1,
                1 << 40,
            ),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Phases,
        name: "phases",
        summary: "streams, random look-ups and turns of both sides on the same memory, one after the other",
        params: &[
            number(
                "n",
                "elements of each of the three vectors",
                256 << 10,
                1,
                ELEMENTS_MAX,
            ),
            number("phases", "phases", 6, 1, ROUNDS_MAX),
            number("passes", "passes of each phase", 4, 1, ROUNDS_MAX),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Torture,
        name: "torture",
        summary: "random accesses of all vCPUs and accelerators to shared pages, amid migrations and frees",
        params: &[
            number(
                "ops",
                "operations of all vCPUs together",
                10_000,
                1,
                1 << 40,
            ),
            number("pages", "shared pages", 256, 1, TORTURE_PAGES_MAX),
            number(
                "seconds",
                "if not 0, run rounds for that long, each with sizes and a mix of operations of its own, and ignore ops",
                0,
                0,
                1 << 20,
            ),
            number(
                "round",
                "with seconds, the round to begin with: replays a round that failed",
                0,
                0,
                1 << 40,
            ),
            Param {
                name: "chaos",
                summary: "with seconds, the host migrates, pins, protects and frees pages, attaches and detaches devices, and drivers fail",
                default: 0,
                min: 0,
                max: 1,
                choices: &["off", "on"],
            },
            Param {
                name: "policy",
                summary: "with seconds, what decides: --policy, one drawn by the seed, or one that mixes good advice with nonsense",
                default: 0,
                min: 0,
                max: 2,
                choices: &["given", "random", "chaotic"],
            },
            number(
                "corrupt",
                "for tests: the host flips a bit when this round begins; 0 for never",
                0,
                0,
                1 << 40,
            ),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::Recover,
        name: "recover",
        summary: "reads pages that may have been lost, recovers from memory errors, frees and uses the pages again",
        params: &[
            number(
                "pages",
                "pages to read, at the end of managed memory",
                64,
                1,
                PAGES_MAX,
            ),
            number("rounds", "how often to read them", 1, 1, ROUNDS_MAX),
            number("lost", "how many of them must be lost", 0, 0, PAGES_MAX),
            number(
                "reason",
                "code of the error they must give; 0 for any",
                0,
                0,
                63,
            ),
            WAIT,
        ],
    },
    Workload {
        kind: Kind::SelfTest,
        name: "selftest",
        summary: "gives the accelerators nonsense and checks that they refuse it as documented",
        params: &[WAIT],
    },
    Workload {
        kind: Kind::Agent,
        name: "agent",
        summary: "takes its commands from a test: only for machines made by the test kit",
        params: &[WAIT],
    },
    Workload {
        kind: Kind::Crash,
        name: "crash",
        summary: "fails on purpose: for tests of the virtual machine monitor",
        params: &[Param {
            name: "kind",
            summary: "how to fail",
            default: 0,
            min: 0,
            max: 5,
            choices: &["null", "ud2", "exit", "panic", "hang", "jump"],
        }],
    },
];

/// The most shared pages that `torture` can keep account of.
pub const TORTURE_PAGES_MAX: u64 = 4096;

/// 128 GiB, the most memory a guest can have, in 8-byte elements.
const ELEMENTS_MAX: u64 = 16 << 30;
/// The same in pages.
const PAGES_MAX: u64 = 32 << 20;
const ROUNDS_MAX: u64 = 1_000_000;

/// How the guest waits for an accelerator.
const WAIT: Param = Param {
    name: "wait",
    summary: "how to learn that commands have completed",
    default: 0,
    min: 0,
    max: 1,
    choices: &["poll", "interrupt"],
};

/// The guest's hint about its memory.
const fn hint(summary: &'static str) -> Param {
    Param {
        name: "hint",
        summary,
        default: 0,
        min: 0,
        max: 4,
        choices: &[
            "none",
            "preferred:system",
            "preferred:device",
            "accessed-by",
            "read-mostly",
        ],
    }
}

const fn number(
    name: &'static str,
    summary: &'static str,
    default: u64,
    min: u64,
    max: u64,
) -> Param {
    Param {
        name,
        summary,
        default,
        min,
        max,
        choices: &[],
    }
}
