//! The engines that tests run with.

use std::env::VarError;
use std::ops::Deref;
use std::sync::LazyLock;

use hmm_backend::engine::Engine;

/// Names engines, separated by commas; without it, tests run with both.
const VARIABLE: &str = "HMMVISOR_TEST_ENGINES";

const BOTH: [Engine; 2] = [Engine::Remap, Engine::Copy];

static CHOSEN: LazyLock<Vec<Engine>> = LazyLock::new(|| match std::env::var(VARIABLE) {
    Ok(names) => parse(&names).unwrap_or_else(|error| panic!("{VARIABLE}: {error}")),
    Err(VarError::NotPresent) => BOTH.to_vec(),
    Err(error) => panic!("{VARIABLE}: {error}"),
});

/// A list of engines.
#[derive(Clone, Copy, Debug)]
pub struct Engines(());

/// The engines tests run with: both, unless the environment variable `HMMVISOR_TEST_ENGINES` names some. On a kernel before Linux 6.8
/// `remap` fails, and tests with it: run them there with `HMMVISOR_TEST_ENGINES=copy`.
pub const ENGINES: Engines = Engines(());

impl Deref for Engines {
    type Target = [Engine];

    fn deref(&self) -> &[Engine] {
        &CHOSEN
    }
}

impl IntoIterator for Engines {
    type Item = Engine;
    type IntoIter = std::iter::Copied<std::slice::Iter<'static, Engine>>;

    fn into_iter(self) -> Self::IntoIter {
        CHOSEN.iter().copied()
    }
}

fn parse(names: &str) -> Result<Vec<Engine>, String> {
    let engine = |name: &str| {
        let found = BOTH.into_iter().find(|engine| engine.name() == name);
        found.ok_or_else(|| format!("no engine \"{name}\"; there are remap and copy"))
    };
    names.split(',').map(engine).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_named_by_commas() {
        assert_eq!(parse("copy"), Ok(vec![Engine::Copy]));
        assert_eq!(parse("remap,copy"), Ok(vec![Engine::Remap, Engine::Copy]));
        for wrong in ["", "copy,", "Copy", "remap copy"] {
            assert!(parse(wrong).unwrap_err().contains("no engine"), "{wrong}");
        }
    }
}
