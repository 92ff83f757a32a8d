//! `top`: watches and steers a running machine in a terminal.
//!
//! | module | what |
//! |---|---|
//! | `watch` | what the machine is asked for, again and again, and what follows from two answers |
//! | `screen` | how that is shown |
//! | `keys` | what a key does |

mod keys;
mod screen;
mod watch;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use hmmvisor::run::signals::{Signals, Taken};
use hmmvisor_api::{Client, ClientError};
use parking_lot::{Mutex, MutexGuard};
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::failed::failed;
use super::mistake::Mistake;
use super::output::print;
use keys::{Doing, Keys};
use watch::{Watch, Watcher};

/// Options of `top`.
#[derive(Args)]
pub struct TopArgs {
    /// The machine's socket: what its `--api` names
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Milliseconds between two looks at the machine
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    every: u64,
    /// Where the key `r` has a trace recorded, in the machine's file system
    #[arg(long, value_name = "FILE", default_value = "top.hmmtrace")]
    record: PathBuf,
}

/// The longest sleep of the loop: how soon it notices a signal, or a new look at the machine.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long a signal waits for the end of a drawing.
const DRAWN_WITHIN: Duration = Duration::from_secs(1);

/// Whether the terminal is taken. Shared with the thread that takes signals, which restores the terminal itself: the process
/// ends soon after a signal, whatever this thread is doing.
#[derive(Clone, Default)]
struct Taking(Arc<Mutex<bool>>);

impl Taking {
    fn restore(mut taken: MutexGuard<'_, bool>) {
        if std::mem::take(&mut *taken) {
            ratatui::restore();
        }
    }
}

/// The terminal, which is as it was before when this is dropped. A panic restores it, too.
struct Screen {
    terminal: ratatui::DefaultTerminal,
    taking: Taking,
}

impl Screen {
    fn enter(taking: Taking) -> Result<Screen> {
        let mut taken = taking.0.lock();
        let terminal = ratatui::try_init().map_err(failed("taking the terminal"))?;
        *taken = true;
        drop(taken);
        Ok(Screen { terminal, taking })
    }

    /// Draws, unless the terminal has been restored.
    fn draw(&mut self, watch: &Watch, line: String) -> Result<()> {
        let taken = self.taking.0.lock();
        if *taken {
            let draw = |frame: &mut ratatui::Frame<'_>| screen::draw(frame, watch, line);
            self.terminal.draw(draw).map_err(failed("drawing"))?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Taking::restore(self.taking.0.lock());
    }
}

/// Carries out `top`.
pub fn top(args: TopArgs) -> Result<ExitCode> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!(Mistake(
            "top needs a terminal; `hmmvisor ctl SOCKET stats` prints the same figures".to_owned()
        ));
    }
    // Before any other thread, so that signals come to the one that takes them.
    let signals = Signals::start().map_err(failed("starting the thread that takes signals"))?;
    let client = Client::new(args.socket);
    let mut watch = Watch::begin(&client)?;
    let came = Arc::new(AtomicI32::new(0));
    let taking = Taking::default();
    let its = (came.clone(), taking.clone());
    signals.on_signal(move |signal| {
        its.0.store(signal, Ordering::Relaxed);
        its.1.0.try_lock_for(DRAWN_WITHIN).map(Taking::restore);
        Taken::Ends
    });
    let mut keys = Keys::new(client.clone(), args.record);
    let every = Duration::from_millis(args.every);
    let watcher = Watcher::start(client, watch.clone(), every);
    let watcher = watcher.map_err(failed("starting the thread that looks at the machine"))?;
    let mut screen = Screen::enter(taking)?;
    // The last line of the screen; none if the rest is to be drawn again, too.
    let mut shown = None;
    loop {
        let line = keys.line();
        if shown.as_ref() != Some(&line) {
            screen.draw(&watch, line.clone())?;
            shown = Some(line);
        }
        if event::poll(LOOK_AGAIN).map_err(failed("waiting for a key"))? {
            match event::read().map_err(failed("reading a key"))? {
                Event::Key(key)
                    if key.kind == KeyEventKind::Press
                        && keys.press(key, &watch) == Doing::Quits =>
                {
                    return Ok(ExitCode::SUCCESS);
                }
                Event::Resize(..) => shown = None,
                _ => {}
            }
        }
        match came.load(Ordering::Relaxed) {
            0 => {}
            signal => return Ok(ExitCode::from(128 + signal as u8)),
        }
        match watcher.newest() {
            None => {}
            Some(Ok(look)) => (watch, shown) = (look, None),
            Some(Err(ClientError::Connect { .. } | ClientError::Broken { .. })) => {
                drop(screen);
                print("the machine has ended\n")?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(Err(error)) => keys.say(error.to_string()),
        }
    }
}
