//! What keys do. Requests run in threads of their own, because some take long.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};

use hmmvisor_api::{Client, Migrate, Record, SetPolicy, VmState};
use hmmvisor_devices::thread;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::watch::Watch;

const HELP: &str = "q quit  p pause/resume  e evict all  r record/end  o policy";

/// Whether `top` goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    GoesOn,
    Quits,
}

/// The last line of the screen, and what keys do to the machine.
pub(super) struct Keys {
    client: Client,
    record: PathBuf,
    /// A policy that is being typed.
    typed: Option<String>,
    said: Option<String>,
    /// Requests so far. Answers have the number of theirs, because they may come in another order.
    asked: u64,
    say: Sender<(u64, String)>,
    saying: Receiver<(u64, String)>,
}

impl Keys {
    pub(super) fn new(client: Client, record: PathBuf) -> Keys {
        let (say, saying) = mpsc::channel();
        Keys {
            client,
            record,
            typed: None,
            said: None,
            asked: 0,
            say,
            saying,
        }
    }

    /// Shows a text instead of the keys, until one is pressed.
    pub(super) fn say(&mut self, text: String) {
        self.said = Some(text);
    }

    /// Returns what the last line says.
    pub(super) fn line(&mut self) -> String {
        let newest = self.asked;
        // What became of an earlier request is seen in the rest of the screen.
        if let Some((_, text)) = self.saying.try_iter().find(|(of, _)| *of == newest) {
            self.said = Some(text);
        }
        match (&self.typed, &self.said) {
            (Some(typed), _) => format!("policy: {typed}_  (Enter uses it, Esc does not)"),
            (None, Some(said)) => said.clone(),
            (None, None) => HELP.to_owned(),
        }
    }

    pub(super) fn press(&mut self, key: KeyEvent, watch: &Watch) -> Doing {
        self.said = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Doing::Quits;
        }
        if let Some(mut typed) = self.typed.take() {
            match key.code {
                KeyCode::Enter => self.use_policy(typed),
                KeyCode::Esc => {}
                KeyCode::Backspace => {
                    typed.pop();
                    self.typed = Some(typed);
                }
                KeyCode::Char(letter) => {
                    typed.push(letter);
                    self.typed = Some(typed);
                }
                _ => self.typed = Some(typed),
            }
            return Doing::GoesOn;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Doing::Quits,
            KeyCode::Char('p') => self.pause_or_resume(watch.vm.state),
            KeyCode::Char('e') => self.evict(watch.memory_pages()),
            KeyCode::Char('r') => self.record_or_end(watch.recording.active),
            KeyCode::Char('o') => self.typed = Some(String::new()),
            _ => {}
        }
        Doing::GoesOn
    }

    /// Makes a request, and shows what came of it.
    fn ask(
        &mut self,
        doing: &str,
        ask: impl FnOnce(&Client) -> Result<String, hmmvisor_api::ClientError> + Send + 'static,
    ) {
        self.said = Some(format!("{doing} ..."));
        self.asked += 1;
        let (client, say, number) = (self.client.clone(), self.say.clone(), self.asked);
        let work = move || {
            let text = ask(&client).unwrap_or_else(|error| error.to_string());
            // `top` has ended otherwise.
            let _ = say.send((number, text));
        };
        if let Err(error) = thread::spawn("request", |_| {}, work) {
            self.said = Some(format!("starting a thread for the request: {error}"));
        }
    }

    fn pause_or_resume(&mut self, state: VmState) {
        let (doing, path, done) = match state {
            VmState::Paused => ("resuming", "/v1/vm/resume", "resumed"),
            VmState::Running | VmState::Ended => ("pausing", "/v1/vm/pause", "paused"),
        };
        self.ask(doing, move |client| {
            client.post(path, None::<&()>).map(|_| done.to_owned())
        });
    }

    fn evict(&mut self, pages: u32) {
        let everything = Migrate {
            first: 0,
            pages,
            to: "system".to_owned(),
        };
        self.ask("evicting", move |client| {
            let answer = client.post("/v1/memory/migrate", Some(&everything))?;
            let moved: Option<hmmvisor_api::Migrated> = serde_json::from_slice(&answer.body).ok();
            Ok(format!("{} pages evicted", moved.map_or(0, |it| it.pages)))
        });
    }

    fn record_or_end(&mut self, active: bool) {
        if active {
            self.ask("ending the recording", |client| {
                let answer = client.delete("/v1/recording")?;
                let it: Option<hmmvisor_api::Recording> = serde_json::from_slice(&answer.body).ok();
                let it = it.unwrap_or_default();
                let path = it.path.unwrap_or_default();
                Ok(format!("{} events in {path}", it.events))
            });
        } else {
            let path = self.record.display().to_string();
            self.ask("beginning to record", move |client| {
                let text = format!("recording into {path}");
                client.put("/v1/recording", &Record { path }).map(|_| text)
            });
        }
    }

    fn use_policy(&mut self, spec: String) {
        self.ask("replacing the policy", move |client| {
            let text = format!("{spec} decides");
            let body = SetPolicy {
                spec,
                script: None,
                region: None,
            };
            client.put("/v1/policy", &body).map(|_| text)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_hides_no_newer_one() {
        let mut keys = Keys::new(Client::new("/nowhere"), PathBuf::new());
        for what in ["pausing", "evicting"] {
            keys.ask(what, |_| Ok(String::new()));
        }
        while !keys.line().is_empty() {
            std::thread::yield_now();
        }
        keys.say.send((2, "512 pages evicted".to_owned())).unwrap();
        keys.say.send((1, "paused".to_owned())).unwrap();
        assert_eq!(keys.line(), "512 pages evicted");
        assert_eq!(keys.line(), "512 pages evicted");
    }
}
