//! Splitting a sweep over machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of several parts of a sweep: every `of`-th run, beginning with the `number`-th. Neighbouring runs differ in
/// the last dimensions only and take about equally long, so the parts do, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Shard {
    /// The number of the part, from 1.
    pub number: usize,
    /// How many parts there are.
    pub of: usize,
}

impl Shard {
    /// The whole sweep.
    pub const WHOLE: Shard = Shard { number: 1, of: 1 };

    /// Whether the run with this index, from 0, is in this part.
    pub fn has(self, index: usize) -> bool {
        index % self.of == self.number - 1
    }

    /// Returns how many of `runs` runs are in this part.
    pub fn share(self, runs: usize) -> usize {
        (runs + self.of - self.number) / self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let parse = |(number, of): (&str, &str)| {
            Some(Shard {
                number: number.parse().ok()?,
                of: of.parse().ok()?,
            })
        };
        text.split_once('/')
            .and_then(parse)
            .filter(|shard| (1..=shard.of).contains(&shard.number))
            .ok_or_else(|| {
                format!("`{text}` is not a shard; write I/N, from 1/N to N/N, such as 2/8")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_a_partition() {
        for of in 1..9 {
            for runs in 0..20 {
                let shards = (1..=of).map(|number| Shard { number, of });
                for index in 0..runs {
                    let owners = shards.clone().filter(|shard| shard.has(index)).count();
                    assert_eq!(owners, 1, "run {index} of {runs} in {of} shards");
                }
                for shard in shards {
                    let share = (0..runs).filter(|index| shard.has(*index)).count();
                    assert_eq!(shard.share(runs), share, "{shard} of {runs}");
                }
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!("2/8".parse(), Ok(Shard { number: 2, of: 8 }));
        for text in ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
