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

/// The screen as it was before, when it is dropped. A panic restores it, too.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn enter() -> Result<Screen> {
        let terminal = ratatui::try_init().map_err(failed("taking the terminal"))?;
        Ok(Screen(terminal))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
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
    let its = came.clone();
    signals.on_signal(move |signal| {
        its.store(signal, Ordering::Relaxed);
        Taken::Ends
    });
    let mut keys = Keys::new(client.clone(), args.record);
    let every = Duration::from_millis(args.every);
    let watcher = Watcher::start(client, watch.clone(), every);
    let watcher = watcher.map_err(failed("starting the thread that looks at the machine"))?;
    let mut screen = Screen::enter()?;
    loop {
        let drawn = screen
            .0
            .draw(|frame| screen::draw(frame, &watch, keys.line()));
        drawn.map_err(failed("drawing"))?;
        if event::poll(LOOK_AGAIN).map_err(failed("waiting for a key"))?
            && let Event::Key(key) = event::read().map_err(failed("reading a key"))?
            && key.kind == KeyEventKind::Press
            && keys.press(key, &watch) == Doing::Quits
        {
            return Ok(ExitCode::SUCCESS);
        }
        match came.load(Ordering::Relaxed) {
            0 => {}
            signal => return Ok(ExitCode::from(128 + signal as u8)),
        }
        match watcher.newest() {
            None => {}
            Some(Ok(look)) => watch = look,
            Some(Err(ClientError::Connect { .. } | ClientError::Broken { .. })) => {
                drop(screen);
                print("the machine has ended\n")?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(Err(error)) => keys.say(error.to_string()),
        }
    }
}
