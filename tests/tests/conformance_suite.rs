//! The conformance suite: sound drivers pass, and for each rule there is a driver that breaks it and nothing else.

#[path = "conformance/accelerated.rs"]
mod accelerated;
#[path = "conformance/model.rs"]
mod model;

use std::sync::Arc;
use std::time::Duration;

use hmm_backend::driver::{DefaultDriver, Driver};
use hmmvisor_testkit::conformance::{self, RULES, Report, Subject, Suite, Verdict};
use hmmvisor_testkit::{CheckedDriver, ENGINES};

use accelerated::Accelerated;
use model::{Bug, Model};

#[test]
fn a_driver_of_defaults_passes() {
    let report = conformance::run(|| DefaultDriver);
    report.assert_passed();
    let unknown = |o: &&conformance::Outcome| matches!(o.verdict, Verdict::NotApplicable(_));
    let unknown: Vec<_> = report.outcomes.iter().filter(unknown).collect();
    assert!(unknown.iter().all(|o| o.rule.name.starts_with("device-")));
}

/// The kit's own driver, with its books.
struct Scripted(Arc<CheckedDriver>);

impl Subject for Scripted {
    fn driver(&self) -> Arc<dyn Driver> {
        self.0.clone()
    }
    fn live(&self) -> Option<usize> {
        Some(self.0.live())
    }
    fn complaints(&self) -> Vec<String> {
        self.0.violations()
    }
}

#[test]
fn the_scripted_driver_passes() {
    conformance::run_subject(|| Scripted(Arc::default())).assert_passed();
}

#[test]
fn the_accelerator_passes_all_rules() {
    let report = conformance::run_subject(Accelerated::default);
    report.assert_passed();
    all_applied(&report);
}

#[test]
fn a_sound_model_passes_all_rules() {
    let report = conformance::run_subject(|| Model::with(Bug::Sound));
    report.assert_passed();
    all_applied(&report);
}

fn all_applied(report: &Report) {
    let passed = |o: &&conformance::Outcome| o.verdict == Verdict::Passed;
    let passed = report.outcomes.iter().filter(passed).count();
    assert_eq!(passed, RULES.len() * ENGINES.len(), "{report}");
}

/// A driver with this bug breaks this rule with both engines, and besides at most these: what many threads do meets any
/// bug, by chance.
fn breaks(bug: Bug, rule: &str, besides: &[&str]) -> Report {
    let report = conformance::run_subject(|| Model::with(bug));
    for engine in ENGINES {
        let mut outcomes = report.outcomes.iter().filter(|o| o.engine == engine);
        assert!(
            outcomes.any(|o| o.rule.name == rule && o.verdict.is_broken()),
            "{bug:?} does not break {rule} ({engine})\n{report}"
        );
    }
    for other in report.broken() {
        assert!(
            other == rule || besides.contains(&other),
            "{bug:?} breaks {other}, too\n{report}"
        );
    }
    report
}

macro_rules! broken {
    ($($name:ident: $bug:ident breaks $rule:literal $(besides $($besides:literal)+)?;)*) => {
        $(#[test]
        fn $name() {
            breaks(Bug::$bug, $rule, &[$($($besides),+)?]);
        })*

        /// Every rule has its broken driver.
        #[test]
        fn no_rule_is_without_a_driver_that_breaks_it() {
            let tested = [$($rule),*];
            let untested = |rule: &&conformance::Rule| !tested.contains(&rule.name);
            let untested: Vec<_> = RULES.iter().filter(untested).collect();
            assert!(untested.is_empty(), "{untested:?}");
        }
    };
}

broken! {
    keeping_a_touched_page: KeepsTouchedPage breaks "cpu-fault" besides "busy-to-system" "concurrent";
    declining_folios_of_a_size: DeclinesAnOrder breaks "every-size";
    writing_to_a_page_about_to_move: ScribblesBeforeCopy breaks "round-trip";
    writing_to_a_page_of_zeros: ScribblesOnZeros breaks "zero-pages";
    assuming_that_pages_are_neighbours: AssumesNeighbours breaks "pinned-skipped" besides "concurrent";
    assuming_that_all_pages_move: AssumesAllMove breaks "busy-to-device" besides "concurrent";
    taking_busy_for_fatal: TakesBusyForFatal breaks "busy-to-system" besides "concurrent";
    taking_a_shortage_for_fatal: TakesShortageForFatal breaks "out-of-memory";
    one_cookie_for_many_folios: OneCookieForMany breaks "cookies" besides "concurrent";
    one_cookie_for_both_halves: SharesCookieOnSplit breaks "split";
    forgetting_frees_by_the_guest: ForgetsGuestFrees breaks "free-by-guest";
    forgetting_what_came_back: ForgetsSecondReturn breaks "free-after-migration";
    refusing_to_evict: RefusesEviction breaks "eviction";
    refusing_to_go: RefusesDetach breaks "detach";
    answering_a_failed_read_with_data: SwallowsErrors breaks "memory-failure";
    one_lock_for_everything: LocksGlobally breaks "no-global-lock";
    knowing_one_device_only: KnowsOneDevice breaks "two-devices" besides "between-devices";
    taking_a_flush_for_the_end: ForgetsFlushed breaks "between-devices" besides "two-devices";
    keeping_translations: KeepsTranslations breaks "device-invalidation";
    keeping_contents_by_frame: KeepsContentsByFrame breaks "device-reuse";
    ignoring_permissions: IgnoresPermission breaks "device-read-only";
    racy: RacyBooks breaks "concurrent" besides "cpu-fault" "busy-to-system" "out-of-memory" "two-devices" "between-devices";
}

#[test]
fn a_panic_is_a_finding() {
    let report = breaks(Bug::PanicsOnSplit, "split", &[]);
    let text = report.to_string();
    assert!(
        text.contains("FAIL split (remap): folio_split (page 0x0, ")
            && text.contains("expected no panic, found `this folio cannot be split`"),
        "{text}"
    );
}

/// The time limit for drivers that never answer; short, because the test checks nothing else.
fn stuck(bug: Bug, rule: &'static str) -> String {
    let suite = Suite::default()
        .rules(&[rule])
        .patience(Duration::from_secs(3));
    let report = suite.run(|| Model::with(bug));
    let stuck = |o: &conformance::Outcome| matches!(o.verdict, Verdict::Stuck(_));
    assert!(report.outcomes.iter().all(stuck), "{report}");
    report.to_string()
}

#[test]
fn a_driver_that_locks_itself_out_is_stuck() {
    let text = stuck(Bug::LocksBooksDuringMigration, "busy-to-device");
    assert!(
        text.contains("migrate_to_device (page 0x0, frame"),
        "{text}"
    );
    assert!(text.contains("folio_split (page 0x0, frame"), "{text}");
}

#[test]
fn a_driver_that_never_answers_is_stuck() {
    let text = stuck(Bug::SleepsOnDetach, "detach");
    assert!(
        text.contains(
            "STUCK detach (copy): no end of the rule after 3s; under way: migrate_to_ram ("
        ),
        "{text}"
    );
}

#[test]
#[should_panic(expected = "the driver does not keep the contract")]
fn nothing_checked_is_nothing_passed() {
    let suite = Suite::default().rules(&["device-reuse"]);
    suite
        .run(|| conformance::Plain::new(DefaultDriver))
        .assert_passed();
}

#[test]
fn the_documentation_has_every_rule() {
    let text = include_str!("../../docs/driver-conformance.md");
    for rule in RULES {
        let row = text
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` ", rule.name)));
        let says = |part: &str| row.is_some_and(|row| row.replace('`', "").contains(part));
        let contract = rule.contract.replace(':', ";");
        assert!(says(rule.sentence) && says(&contract), "{rule:?}: {row:?}");
    }
}

#[test]
fn a_report_names_rule_engine_and_evidence() {
    let report = breaks(Bug::SharesCookieOnSplit, "split", &[]);
    let text = report.to_string();
    for part in [
        "split                 6, 12: F06 F26        FAIL   FAIL   after folio_split",
        "FAIL split (copy): after the free of one page of a large folio, ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    println!("{text}");
}
