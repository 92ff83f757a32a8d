//! The results of the rules.

use std::fmt;

use hmm_backend::engine::Engine;
use hmm_backend::pages::Page;

use super::Rule;

/// The evidence that a rule is broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// The value that was checked, and when.
    pub what: String,
    /// The page concerned.
    pub page: Option<Page>,
    /// The cookie of its folio.
    pub cookie: Option<u64>,
    /// The expected value.
    pub expected: String,
    /// The value that was found.
    pub found: String,
}

impl Evidence {
    /// Something that is not as it should be.
    pub fn new(
        what: impl Into<String>,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Evidence {
        Evidence {
            what: what.into(),
            page: None,
            cookie: None,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The same, about this page.
    pub fn at(mut self, page: Page) -> Evidence {
        self.page = Some(page);
        self
    }

    /// The same, about this cookie.
    pub fn cookie(mut self, cookie: u64) -> Evidence {
        self.cookie = Some(cookie);
        self
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(page) = self.page {
            write!(f, ", page {page}")?;
        }
        if let Some(cookie) = self.cookie {
            write!(f, ", cookie {cookie:#x}")?;
        }
        write!(f, ": expected {}, found {}", self.expected, self.found)
    }
}

/// The result of a rule with one engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The driver keeps it.
    Passed,
    /// The driver breaks it.
    Failed(Evidence),
    /// There was no answer: the driver's calls that had not returned.
    Stuck(String),
    /// It could not be checked, and why.
    NotApplicable(String),
}

impl Verdict {
    /// Whether the driver breaks the rule, by a wrong answer or none.
    pub fn is_broken(&self) -> bool {
        matches!(self, Verdict::Failed(_) | Verdict::Stuck(_))
    }

    fn word(&self) -> &'static str {
        match self {
            Verdict::Passed => "pass",
            Verdict::Failed(_) => "FAIL",
            Verdict::Stuck(_) => "STUCK",
            Verdict::NotApplicable(_) => "n/a",
        }
    }
}

/// One rule with one engine.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rule.
    pub rule: &'static Rule,
    /// The engine.
    pub engine: Engine,
    /// The verdict.
    pub verdict: Verdict,
}

/// All that was checked. Prints as a table, with the evidence below it.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Rule by rule, and for each one engine after the other.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// The names of the broken rules, each once.
    pub fn broken(&self) -> Vec<&'static str> {
        let broken = self.outcomes.iter().filter(|o| o.verdict.is_broken());
        let mut names: Vec<_> = broken.map(|o| o.rule.name).collect();
        names.dedup();
        names
    }

    /// Whether something was checked and no rule is broken.
    pub fn passed(&self) -> bool {
        let checked = |o: &Outcome| o.verdict == Verdict::Passed;
        self.broken().is_empty() && self.outcomes.iter().any(checked)
    }

    /// Panics with the whole report if a rule is broken, or if none could be checked.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(
            self.passed(),
            "the driver does not keep the contract\n{self}"
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut engines: Vec<Engine> = Vec::new();
        for outcome in &self.outcomes {
            if !engines.contains(&outcome.engine) {
                engines.push(outcome.engine);
            }
        }
        write!(f, "{:<22}{:<22}", "rule", "contract")?;
        for engine in &engines {
            write!(f, "{:<7}", engine.name())?;
        }
        writeln!(f, "says")?;
        for row in self.outcomes.chunk_by(|a, b| a.rule.name == b.rule.name) {
            let rule = row[0].rule;
            write!(f, "{:<22}{:<22}", rule.name, rule.contract)?;
            for engine in &engines {
                let cell = row.iter().find(|outcome| outcome.engine == *engine);
                write!(f, "{:<7}", cell.map_or("", |o| o.verdict.word()))?;
            }
            writeln!(f, "{}", rule.sentence)?;
        }
        for outcome in &self.outcomes {
            let (name, engine) = (outcome.rule.name, outcome.engine);
            match &outcome.verdict {
                Verdict::Passed => {}
                Verdict::Failed(evidence) => writeln!(f, "FAIL {name} ({engine}): {evidence}")?,
                Verdict::Stuck(calls) => writeln!(f, "STUCK {name} ({engine}): {calls}")?,
                Verdict::NotApplicable(why) => writeln!(f, "n/a {name} ({engine}): {why}")?,
            }
        }
        Ok(())
    }
}
