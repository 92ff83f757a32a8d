//! Runs the rules: each with a fresh subject, on a thread that may get stuck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use hmm_backend::driver::Driver;
use hmm_backend::engine::Engine;
use hmm_backend::{Backend, Error};

use super::bench::{self, Bench, Checked};
use super::obstacles::Obstacles;
use super::witness::{Witness, message};
use super::{Evidence, Outcome, Plain, RULES, Report, Rule, Subject, Verdict};
use crate::{ENGINES, patient};

/// Checks all rules with both engines (see [`ENGINES`]). `make` makes a fresh driver for each.
pub fn run<D: Driver + 'static>(make: impl Fn() -> D) -> Report {
    run_subject(|| Plain::new(make()))
}

/// Checks a [`Subject`]: a driver with records, complaints or a device that the suite may look at.
pub fn run_subject<S: Subject>(make: impl Fn() -> S) -> Report {
    Suite::default().run(make)
}

/// The rules and engines to check, and the time limit.
#[derive(Clone, Debug)]
pub struct Suite {
    engines: Vec<Engine>,
    rules: Vec<&'static str>,
    patience: Duration,
}

impl Default for Suite {
    /// Everything; a rule may take half a minute before it counts as stuck.
    fn default() -> Suite {
        Suite {
            engines: ENGINES.to_vec(),
            rules: RULES.iter().map(|rule| rule.name).collect(),
            patience: patient(Duration::from_secs(30)),
        }
    }
}

impl Suite {
    /// Only these rules.
    pub fn rules(mut self, names: &[&'static str]) -> Suite {
        for name in names {
            assert!(
                RULES.iter().any(|rule| rule.name == *name),
                "no rule {name}"
            );
        }
        self.rules = names.into();
        self
    }

    /// Only these engines.
    pub fn engines(mut self, engines: &[Engine]) -> Suite {
        self.engines = engines.into();
        self
    }

    /// How long a rule may take before it counts as stuck. On a loaded machine a rule may take seconds.
    pub fn patience(mut self, patience: Duration) -> Suite {
        self.patience = patience;
        self
    }

    /// Checks. A subject that got stuck stays behind, with the threads that are stuck in it.
    pub fn run<S: Subject>(&self, make: impl Fn() -> S) -> Report {
        let mut report = Report::default();
        for rule in RULES.iter().filter(|rule| self.rules.contains(&rule.name)) {
            for engine in &self.engines {
                report.outcomes.push(Outcome {
                    rule,
                    engine: *engine,
                    verdict: self.check(rule, *engine, &make),
                });
            }
        }
        report
    }

    fn check<S: Subject>(
        &self,
        rule: &'static Rule,
        engine: Engine,
        make: &impl Fn() -> S,
    ) -> Verdict {
        let memory = match bench::backend(engine) {
            Ok(memory) => memory,
            Err(error @ Error::EngineUnsupported { .. }) => {
                return Verdict::NotApplicable(error.to_string());
            }
            Err(error) => return Verdict::Failed(setting_up(error)),
        };
        let mut subjects: Vec<(Box<dyn Subject>, Arc<Witness>)> = Vec::new();
        for _ in 0..rule.subjects {
            let made = catch_unwind(AssertUnwindSafe(|| {
                let subject = make();
                let driver = subject.driver();
                (subject, driver)
            }));
            match made {
                Ok((subject, driver)) => {
                    subjects.push((Box::new(subject), Arc::new(Witness::new(driver))));
                }
                Err(panic) => return Verdict::Failed(panicked("making a subject", &*panic)),
            }
        }
        let witnesses: Vec<_> = subjects.iter().map(|(_, w)| w.clone()).collect();
        let (say, hear) = mpsc::channel();
        let patience = self.patience;
        let trial = move || try_rule(rule, memory, subjects, patience, &say);
        let thread = std::thread::Builder::new().name("conformance".into());
        let thread = match thread.spawn(trial) {
            Ok(thread) => thread,
            Err(error) => return Verdict::Failed(setting_up(error)),
        };
        let stuck = |doing: &str| {
            let calls = witnesses.iter().flat_map(|w| w.running());
            let calls: Vec<_> = calls.collect();
            let calls = match calls.is_empty() {
                true => "no call of the driver".to_owned(),
                false => calls.join(", "),
            };
            Verdict::Stuck(format!(
                "no end of {doing} after {patience:?}; under way: {calls}"
            ))
        };
        let Ok(verdict) = hear.recv_timeout(patience) else {
            return stuck("the rule");
        };
        // What follows is the taking apart.
        match hear.recv_timeout(patience) {
            Err(mpsc::RecvTimeoutError::Timeout) if !verdict.is_broken() => {
                stuck("taking it apart")
            }
            Err(mpsc::RecvTimeoutError::Timeout) => verdict,
            _ => match thread.join() {
                Err(panic) if !verdict.is_broken() => {
                    Verdict::Failed(panicked("taking it apart", &*panic))
                }
                _ => verdict,
            },
        }
    }
}

/// Runs a rule to its verdict, says it, and takes everything apart.
fn try_rule(
    rule: &Rule,
    memory: (Arc<Backend>, Arc<Obstacles>),
    subjects: Vec<(Box<dyn Subject>, Arc<Witness>)>,
    patience: Duration,
    say: &Sender<Verdict>,
) {
    // Within the rule's own patience, so that a rule can say what does not come to an end.
    let patience = patience / 4;
    let made = catch_unwind(AssertUnwindSafe(|| {
        Bench::new(memory, subjects, rule.device_pages, patience)
    }));
    let mut bench = match made {
        Ok(Ok(bench)) => bench,
        Ok(Err(error)) => return tell(say, Verdict::Failed(setting_up(error))),
        Err(panic) => return tell(say, Verdict::Failed(panicked("connecting", &*panic))),
    };
    if rule.needs_access && bench.units.iter().any(|unit| unit.access.is_none()) {
        let why = "the subject gives no access through its device";
        return tell(say, Verdict::NotApplicable(why.into()));
    }
    let steps = catch_unwind(AssertUnwindSafe(|| (rule.steps)(&mut bench)))
        .unwrap_or_else(|panic| Err(panicked("a step of the rule", &*panic)));
    let checked: Checked = bench
        .accidents()
        .and(steps)
        .and_then(|()| bench.check_books("in the end"))
        .and_then(|()| bench.accidents());
    tell(
        say,
        checked.map_or_else(Verdict::Failed, |()| Verdict::Passed),
    );
    drop(bench);
}

fn tell(say: &Sender<Verdict>, verdict: Verdict) {
    // The receiver is gone if the verdict comes too late.
    let _ = say.send(verdict);
}

fn setting_up(error: impl std::fmt::Display) -> Evidence {
    Evidence::new("setting up", "no error", format!("`{error}`"))
}

fn panicked(what: &str, panic: &(dyn std::any::Any + Send)) -> Evidence {
    Evidence::new(what, "no panic", format!("`{}`", message(panic)))
}
