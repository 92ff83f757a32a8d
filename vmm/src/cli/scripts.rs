//! What commands say about policy scripts, and `hmmvisor policies --check`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, Page, PageRange, Place};
use hmm_backend::policy::LinkModel;
use hmmvisor_experiments::figures::count;
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_policies::{Limits, Log, PolicyChoice, ScriptFigures};

use super::mistake::Mistake;
use super::output::{note, print};

/// Returns why the figures of a replay or a run are not those of its script; None if they are.
pub fn script_failure(figures: &ScriptFigures) -> Option<String> {
    if !figures.failed() {
        return None;
    }
    let ScriptFigures {
        decisions,
        failures,
        off,
        ..
    } = *figures;
    let given_up = match off {
        0 => "",
        _ => " and was given up",
    };
    Some(format!(
        "the policy script failed in {failures} of the {} events that it was asked about{given_up}; the default policy decided in its place",
        failures.saturating_add(decisions)
    ))
}

/// Loads a script and lets it decide in a short replay. What it does wrong is an error.
pub fn check(choice: &PolicyChoice) -> Result<ExitCode> {
    if !matches!(choice, PolicyChoice::Script(_)) {
        bail!(Mistake(format!(
            "{choice} is no policy script: name a file whose name ends in .luau"
        )));
    }
    let log: Log = Arc::new(|line: &str| note(&format!("policy script {line}")));
    let chosen = choice.load(Limits::default(), log)?;
    let config = ReplayConfig {
        policy: chosen.factory,
        memory: 8 << 20,
        device_memory: 1 << 20,
        devices: 2,
        link: LinkModel::default(),
        // Ticks are to come, and holds to end.
        costs: Costs {
            fault: Duration::from_millis(1),
            ..Costs::default()
        },
        time: Time::Modelled,
        optimal: false,
        moves: false,
    };
    let outcome = replay(dry_run(), &config)?;
    for script in &chosen.scripts {
        let figures = script.figures();
        let name = script.path().display();
        if figures.failures > 0 {
            bail!(
                "{name}: it failed in {} of the {} of a dry run",
                figures.failures,
                count(figures.failures + figures.decisions, "event")
            );
        }
        let cut = match outcome.advice_cut {
            0 => String::new(),
            times => format!("; its advice had to be cut {}", count(times, "time")),
        };
        print(&format!(
            "{name}: it loads, and made {} in a dry run without a failure{cut}\n",
            count(figures.decisions, "decision")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Accesses that have a policy asked about everything: CPUs and two devices touch page by page, with strides and again and
/// again, more than device memory holds; the guest hints and frees.
fn dry_run() -> Vec<Event> {
    let event = |kind, pages| Event::new(Duration::ZERO, kind, pages);
    let access = |device: Option<u8>, access, page, repeats| Event {
        device: device.map(DeviceId),
        access: Some(access),
        repeats,
        ..event(EventKind::Access, PageRange::single(Page(page)))
    };
    let mut events = Vec::new();
    // Pages that stay in system memory are used in place, so that the policy hears of that.
    let in_place = PageRange::with_len(Page(1536), 64);
    events.push(Event {
        hint: Some(Hint::PreferredLocation(Some(Place::System))),
        ..event(EventKind::Hint, in_place)
    });
    for round in 0..2 {
        events.extend((0..1600).map(|page| access(None, Access::Write, page, 1)));
        events.extend((0..1024).map(|page| access(Some(0), Access::Read, page, 1)));
        events.extend((0..128).map(|n| access(Some(1), Access::Write, n * 8, 1)));
        events.extend(
            in_place
                .pages()
                .map(|page| access(Some(0), Access::Read, page.0, 300)),
        );
        events.extend((0..64).map(|n| access(None, Access::Read, n * 16 % 1024, 1)));
        let freed = PageRange::with_len(Page(512 * round), 256);
        events.push(event(EventKind::Freed, freed));
    }
    events
}
