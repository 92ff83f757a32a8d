use super::*;

use std::sync::Condvar;

/// Keeps each run until as many are running as are expected at least, and notes how many live ones there were.
struct Crowd {
    state: Mutex<(usize, usize, usize, bool)>,
    changed: Condvar,
    wanted: usize,
}

impl Runner for Crowd {
    fn policy(&self, spec: &str) -> Result<String, String> {
        Fake::default().policy(spec)
    }
    fn workload(&self, source: &Source) -> Result<(), String> {
        Fake::default().workload(source)
    }
    fn trace(&self, path: &Path) -> Result<TraceFacts, String> {
        Fake::default().trace(path)
    }
    fn run(&self, run: &SweepRun) -> Result<Measured, String> {
        let live = usize::from(matches!(run.source, Source::Live(_)));
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        state.1 += live;
        state.2 = state.2.max(state.1);
        // The first run that sees all of them releases all runs.
        state.3 |= state.0 == self.wanted;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| !state.3).unwrap();
        state.0 -= 1;
        state.1 -= live;
        Ok(Measured::default())
    }
}

#[test]
fn runs_are_done_at_the_same_time_but_live_ones_are_limited() {
    let folder = Folder::new();
    let sweep = folder.sweep(SWEEP).unwrap();
    let crowd = Crowd {
        state: Mutex::default(),
        changed: Condvar::new(),
        wanted: 4,
    };
    let parallel = Parallel { jobs: 4, live: 2 };
    let out = folder.path("out");
    // Hangs if fewer than four are done at a time.
    let done = sweep
        .start(
            &Settings {
                parallel,
                ..settings(&out)
            },
            &crowd,
        )
        .unwrap();
    assert_eq!(done.runs, 24);
    assert_eq!(crowd.state.lock().unwrap().2, 2, "live runs at a time");
}
