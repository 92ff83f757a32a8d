//! Threads that report their panics and can be joined with a time limit. All threads of a machine that could keep a guest
//! waiting are started here.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// How long a device's thread may take to end when the device is stopped. It ends within milliseconds, unless something
/// that it waits for never comes.
pub const STOP_WITHIN: Duration = Duration::from_secs(2);

/// A running thread. Dropping this leaves the thread to itself.
pub struct Thread<T> {
    handle: JoinHandle<()>,
    result: Receiver<Result<T, ()>>,
    /// Received, but not asked for yet.
    ended: Option<Result<T, ()>>,
}

/// The result of waiting for a thread.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined<T> {
    /// The thread has ended, with this result.
    Ended(T),
    /// The thread has panicked, and has reported it.
    Panicked,
    /// The thread still runs. It is left to itself, and owns what it uses.
    Running,
}

type Hook = dyn Fn(&str) + Send + Sync;

/// See [`on_begin`].
static ON_BEGIN: OnceLock<Box<Hook>> = OnceLock::new();

/// Has `hook` called by each thread that begins from now on, with the thread's name, before the thread does anything else: a program
/// that confines its threads does so here. Once in a process; returns whether this call was the one.
pub fn on_begin(hook: impl Fn(&str) + Send + Sync + 'static) -> bool {
    ON_BEGIN.set(Box::new(hook)).is_ok()
}

thread_local! {
    /// See [`passes_on`].
    static PASSES_ON: Cell<bool> = const { Cell::new(false) };
}

/// Has the threads that [`spawn`] starts from now on for the calling thread not call the hook: what the hook has done to this thread holds
/// for them, too.
pub fn passes_on() {
    PASSES_ON.set(true);
}

/// Calls the hook that [`on_begin`] has set, if there is one. Threads that [`spawn`] starts have done so; a thread that is started
/// otherwise calls this first.
pub fn begin(name: &str) {
    if let Some(hook) = ON_BEGIN.get() {
        hook(name);
    }
}

/// Starts a thread, which calls [`begin`] first unless the calling thread [passes on](passes_on) what that does. `on_panic` is called by the thread with its name if `body` panics; the standard
/// library has printed the panic's message by then.
pub fn spawn<T: Send + 'static>(
    name: &str,
    on_panic: impl FnOnce(&str) + Send + 'static,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Thread<T>> {
    let (report, result) = mpsc::sync_channel(1);
    let its_name = name.to_owned();
    let inherits = PASSES_ON.get();
    let handle = Builder::new().name(name.to_owned()).spawn(move || {
        match inherits {
            true => passes_on(),
            false => begin(&its_name),
        }
        // Nothing of what the body has left behind is used here.
        let ended = catch_unwind(AssertUnwindSafe(body)).map_err(drop);
        if ended.is_err() {
            on_panic(&its_name);
        }
        // The thread may have been left to itself.
        let _ = report.send(ended);
    })?;
    Ok(Thread {
        handle,
        result,
        ended: None,
    })
}

impl<T> Thread<T> {
    /// The standard library's handle, to send signals to the thread or to unpark it.
    pub fn handle(&self) -> &JoinHandle<()> {
        &self.handle
    }

    /// Waits for the thread's end, at most this long. True if the thread has ended.
    pub fn wait(&mut self, limit: Duration) -> bool {
        if self.ended.is_none() {
            self.ended = match self.result.recv_timeout(limit) {
                Ok(ended) => Some(ended),
                Err(RecvTimeoutError::Timeout) => None,
                // A panic in `on_panic`.
                Err(RecvTimeoutError::Disconnected) => Some(Err(())),
            };
        }
        self.ended.is_some()
    }

    /// Waits for the thread's end, at most this long, and returns its result.
    pub fn join_within(mut self, limit: Duration) -> Joined<T> {
        self.wait(limit);
        let Some(ended) = self.ended else {
            return Joined::Running;
        };
        // The thread has nothing left to do. Its panics were caught.
        let _ = self.handle.join();
        ended.map_or(Joined::Panicked, Joined::Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_panic_is_told_with_the_thread_s_name() {
        let (told, tell) = mpsc::channel();
        let on_panic = move |name: &str| told.send(name.to_owned()).unwrap();
        let thread = spawn("weak", on_panic, || panic!("on purpose")).unwrap();
        assert_eq!(tell.recv_timeout(PATIENCE).unwrap(), "weak");
        assert_eq!(thread.join_within(PATIENCE), Joined::<()>::Panicked);
    }

    #[test]
    fn a_thread_that_does_not_end_is_left_to_itself() {
        let (go, waits) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel();
        let body = move || {
            let _ = waits.recv();
            done.send(()).unwrap();
        };
        let mut thread = spawn("slow", |_| {}, body).unwrap();
        assert!(!thread.wait(Duration::from_millis(1)));
        assert_eq!(
            thread.join_within(Duration::from_millis(1)),
            Joined::Running
        );
        drop(go);
        ended.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn the_hook_is_called_before_the_body() {
        use parking_lot::Mutex;
        static BEGUN: Mutex<Vec<String>> = Mutex::new(Vec::new());
        assert!(on_begin(|name| BEGUN.lock().push(name.to_owned())));
        assert!(!on_begin(|_| {}));
        let body = || BEGUN.lock().contains(&"hooked".to_owned());
        let thread = spawn("hooked", |_| {}, body).unwrap();
        assert_eq!(thread.join_within(PATIENCE), Joined::Ended(true));

        let grandchild = || spawn("inheriting-2", |_| {}, || ()).unwrap();
        let child = move || {
            passes_on();
            let child = spawn(
                "inheriting-1",
                |_| {},
                move || {
                    grandchild().join_within(PATIENCE);
                },
            );
            child.unwrap().join_within(PATIENCE)
        };
        let thread = spawn("passes-on", |_| {}, child).unwrap();
        assert_eq!(
            thread.join_within(PATIENCE),
            Joined::Ended(Joined::Ended(()))
        );
        let begun = BEGUN.lock();
        assert!(begun.contains(&"passes-on".to_owned()));
        assert!(!begun.iter().any(|name| name.starts_with("inheriting")));
    }

    #[test]
    fn the_result_is_the_body_s() {
        let mut thread = spawn("quick", |_| {}, || 42).unwrap();
        assert!(thread.wait(PATIENCE) && thread.wait(PATIENCE));
        assert_eq!(thread.join_within(PATIENCE), Joined::Ended(42));
    }
}
