//! What commands say about policy scripts, and `hmmvisor policies --check`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use hmm_backend::EVICTION_BATCH;
use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{Access, DeviceId, Hint, Page, PageRange, Place};
use hmm_backend::policy::LinkMatrix;
use hmmvisor::messages;
use hmmvisor_experiments::figures::count;
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_policies::{Limits, PolicyChoice};

use super::mistake::Mistake;
use super::output::print;

/// Loads a script and lets it decide in a short replay. What it does wrong is an error.
pub fn check(script: PolicyChoice) -> Result<ExitCode> {
    if let PolicyChoice::BuiltIn(_) = script {
        bail!(Mistake(format!(
            "policy {script} is built in; name a policy script, a file whose name ends in .luau"
        )));
    }
    // With hints, pages that are to stay in system memory are used there, in place.
    let script = match script.has("hints") {
        true => script,
        false => format!("{script}+hints").parse()?,
    };
    let log = messages::of_scripts();
    let chosen = script.load(Limits::default(), log)?;
    let told = chosen.scripts.iter().map(|script| script.accesses()).max();
    let config = ReplayConfig {
        policy: chosen.factory,
        memory: 8 << 20,
        device_memory: 1 << 20,
        devices: 2,
        links: LinkMatrix::default(),
        // Ticks are to come, and holds to end.
        costs: Costs {
            fault: Duration::from_millis(1),
            ..Costs::default()
        },
        fidelity: told.unwrap_or_default(),
        eviction_batch: EVICTION_BATCH,
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
        let untried = match script.untried()[..] {
            [] => String::new(),
            ref names => format!("; not tried: {}", names.join(", ")),
        };
        print(&format!(
            "{name}: it loads, and made {} in a dry run without a failure{cut}{untried}\n",
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
    // Pages that stay in system memory, as the modifier `hints` has it, are used in place, so that the policy hears of that.
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
