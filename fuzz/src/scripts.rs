//! Policy scripts: any bytes are loaded as a script, and what can be loaded decides about some faults. Nothing may panic or
//! take long, and a script's messages may reach no output without escapes.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmm_backend::observe::{Event, EventKind};
use hmm_backend::pages::{DeviceId, Page, PageRange};
use hmm_backend::policy::LinkMatrix;
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_policies::{Limits, Log, PolicyChoice, ScriptSpec};

/// Faults that a script is asked about.
const FAULTS: u32 = 24;
/// Far more than loading and all these events may take, on a machine that has much else to do.
const LONG: Duration = Duration::from_secs(20);

/// The first byte says what the others are: a script, or the body of one's function.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let script = match first % 2 {
        0 => bytes.to_vec(),
        _ => [
            b"return { on_fault = function(page, write, device, now)\n",
            bytes,
            b"\nend, victims = function(want, list)\n",
            bytes,
            b"\nend, tick_interval = 100, on_tick = function(now) end }",
        ]
        .concat(),
    };
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let path = folder.path().join("script.luau");
    fs::write(&path, &script).expect("there is room");

    let said = Arc::new(Mutex::new(0));
    let count = said.clone();
    let log: Log = Arc::new(move |line: &str| {
        // Its name and its messages, with escapes, and its result.
        assert!(line.len() < 1400, "{} bytes", line.len());
        assert!(!line.contains(char::is_control), "{line:?}");
        *count.lock().expect("no line panics") += 1;
    });
    let began = Instant::now();
    let choice = PolicyChoice::Script(ScriptSpec::file(path));
    match choice.load(Limits::default(), log) {
        Ok(chosen) => {
            let is_text = std::str::from_utf8(&script).is_ok() && !script.contains(&0);
            assert!(is_text, "what is no text was loaded");
            let config = ReplayConfig {
                fidelity: hmm_backend::pages::Fidelity::default(),
                eviction_batch: hmm_backend::EVICTION_BATCH,
                policy: chosen.factory,
                memory: 4 << 20,
                device_memory: 64 << 10,
                devices: 1,
                links: LinkMatrix::default(),
                costs: Costs::default(),
                time: Time::Modelled,
                optimal: false,
                moves: false,
            };
            let outcome = replay((0..FAULTS).map(fault), &config);
            outcome.expect("advice is only advice");
            let figures = chosen.scripts[0].figures();
            assert!(figures.off <= 1, "{figures:?}");
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.len() < 2000, "{} bytes", error.len());
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
    // Lines, failures, and that it is not asked any more.
    assert!(*said.lock().expect("no line panics") <= 210);
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
}

/// Of a CPU and of the device in turns, in both blocks.
fn fault(i: u32) -> Event {
    let page = Page(i * 389 % 1024);
    let time = Duration::from_micros(u64::from(i) * 70);
    let mut event = Event::new(time, EventKind::Access, PageRange::single(page));
    event.device = (i % 2 == 1).then_some(DeviceId(0));
    event
}
