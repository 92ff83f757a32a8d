//! Output that never keeps its writer waiting for long: a bounded queue, and a thread that writes what is in it.
//!
//! A writer waits for a reader that is slow, so that nothing is lost; but only while the output makes progress. When nothing has
//! been taken for [`STALL`] the output is *stalled*: from then on, until it makes progress again, what does not fit is
//! dropped and counted.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hmmvisor_devices::thread::{self, Thread};
use hmmvisor_experiments::steady::{wait_for_room, write_all};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The most bytes in the queue.
const LIMIT: usize = 16 << 10;
/// The most bytes of one write: as many as a pipe takes at once, so that each write is a sign of progress.
const CHUNK: usize = 4096;
/// How long a writer waits for an output that makes no progress.
pub const STALL: Duration = Duration::from_secs(2);

/// What was not written of an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutletFigures {
    /// Bytes that were not written: nothing took them in time, or writing failed.
    pub dropped: u64,
    /// Why writing failed, if it did.
    pub error: Option<String>,
}

/// The writers' end of the queue. Cheap to clone.
#[derive(Clone)]
pub struct Outlet(Arc<OutputQueue>);

/// The thread that writes what is in the queue.
pub struct OutletThread {
    outlet: Outlet,
    thread: Option<Thread<()>>,
}

struct OutputQueue {
    queue: Mutex<Queue>,
    /// Notified when bytes have come or gone, and when the output is to end.
    changed: Condvar,
    stalled: AtomicBool,
}

struct Queue {
    bytes: VecDeque<u8>,
    /// Bytes that the thread has taken out and not written yet.
    in_hand: usize,
    /// When a write succeeded last, or the queue was empty.
    progress: Instant,
    /// The run ends: no writer waits for room any more.
    hurry: bool,
    /// The thread ends when the queue is empty.
    closed: bool,
    figures: OutletFigures,
}

impl Outlet {
    /// Starts the thread that writes to `out`; `on_panic` learns if it panics.
    pub fn start(
        name: &str,
        out: Box<dyn Write + Send>,
        on_panic: impl FnOnce(&str) + Send + 'static,
    ) -> io::Result<OutletThread> {
        let outlet = Outlet(Arc::new(OutputQueue {
            queue: Mutex::new(Queue {
                bytes: VecDeque::new(),
                in_hand: 0,
                progress: Instant::now(),
                hurry: false,
                closed: false,
                figures: OutletFigures::default(),
            }),
            changed: Condvar::new(),
            stalled: AtomicBool::new(false),
        }));
        let its = outlet.clone();
        let thread = thread::spawn(name, on_panic, move || its.serve(out))?;
        Ok(OutletThread {
            outlet,
            thread: Some(thread),
        })
    }

    /// Puts bytes into the queue. Waits for room while the output makes progress; where it makes none, the bytes are dropped.
    pub fn put(&self, bytes: &[u8]) {
        let mut queue = self.queue();
        loop {
            if queue.figures.error.is_some() {
                break;
            }
            if queue.bytes.is_empty() || queue.bytes.len() + bytes.len() <= LIMIT {
                return self.push(queue, bytes);
            }
            let patience = (queue.progress + STALL).saturating_duration_since(Instant::now());
            if patience.is_zero() {
                self.0.stalled.store(true, Ordering::Relaxed);
            }
            if queue.hurry || self.is_stalled() {
                break;
            }
            self.sleep(&mut queue, patience);
        }
        queue.figures.dropped += bytes.len() as u64;
    }

    /// Puts bytes into the queue if there is room at once; otherwise drops them.
    pub fn offer(&self, bytes: &[u8]) {
        let mut queue = self.queue();
        if queue.figures.error.is_none() && queue.bytes.len() + bytes.len() <= LIMIT {
            self.push(queue, bytes);
        } else {
            queue.figures.dropped += bytes.len() as u64;
        }
    }

    /// Whether nothing takes the output, so that it is dropped.
    pub fn is_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }

    /// Ends all waits for room. From now on, bytes that find no room are dropped at once.
    pub fn hurry(&self) {
        self.queue().hurry = true;
        self.0.changed.notify_all();
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, bytes: &[u8]) {
        if queue.bytes.is_empty() && queue.in_hand == 0 {
            queue.progress = Instant::now();
        }
        queue.bytes.extend(bytes);
        drop(queue);
        self.0.changed.notify_all();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock()
    }

    fn sleep(&self, queue: &mut MutexGuard<'_, Queue>, limit: Duration) {
        self.0.changed.wait_for(queue, limit);
    }

    /// The thread's body.
    fn serve(&self, mut out: Box<dyn Write + Send>) {
        let mut chunk = Vec::with_capacity(CHUNK);
        loop {
            let mut queue = self.queue();
            while queue.bytes.is_empty() {
                if queue.closed {
                    return;
                }
                self.sleep(&mut queue, STALL);
            }
            let length = queue.bytes.len().min(CHUNK);
            chunk.clear();
            chunk.extend(queue.bytes.drain(..length));
            queue.in_hand = length;
            drop(queue);
            let written = write_all(&mut *out, &chunk);
            let mut queue = self.queue();
            queue.in_hand = 0;
            queue.progress = Instant::now();
            self.0.stalled.store(false, Ordering::Relaxed);
            if let Err(error) = written {
                // Bytes that come from now on are dropped at once.
                let lost = length + queue.bytes.len();
                queue.bytes.clear();
                queue.figures.dropped += lost as u64;
                queue.figures.error = Some(error.to_string());
            }
            drop(queue);
            self.0.changed.notify_all();
        }
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutletThread {
    /// Returns the writers' end.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Waits until everything is written, but not longer than `limit`, and not for an output that makes no progress. What is
    /// left then counts as dropped. Idempotent.
    pub fn finish(&mut self, limit: Duration) -> OutletFigures {
        let deadline = Instant::now() + limit;
        let mut queue = self.outlet.queue();
        queue.hurry = true;
        queue.closed = true;
        self.outlet.0.changed.notify_all();
        while !queue.bytes.is_empty() || queue.in_hand > 0 {
            let now = Instant::now();
            let patience = deadline.min(queue.progress + STALL);
            if self.outlet.is_stalled() || patience <= now {
                break;
            }
            self.outlet.sleep(&mut queue, patience - now);
        }
        let left = queue.in_hand + queue.bytes.len();
        queue.bytes.clear();
        let mut figures = queue.figures.clone();
        figures.dropped += left as u64;
        // The thread may still write what it has in hand; it is not counted twice.
        queue.figures.dropped += (left - queue.in_hand) as u64;
        drop(queue);
        if let Some(mut thread) = self.thread.take()
            && (left == 0 || thread.wait(Duration::ZERO))
        {
            // A panic has been reported already.
            let _ = thread.join_within(STALL);
        }
        figures
    }
}

impl Drop for OutletThread {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.finish(STALL);
        }
    }
}

/// Standard output or standard error, which other programs share: a reader that has closed the pipe is no error, and where
/// another program has made the descriptor non-blocking, a write waits all the same.
pub struct MayClose<W>(pub W);

impl<W: Write + AsFd> MayClose<W> {
    /// Waits for room and tries once more. If there is none then, the caller gets the error and counts the bytes.
    fn with_room<T>(&mut self, call: impl Fn(&mut W) -> io::Result<T>) -> io::Result<T> {
        match call(&mut self.0) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_for_room(&self.0)?;
                call(&mut self.0)
            }
            result => result,
        }
    }
}

impl<W: Write + AsFd> Write for MayClose<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.with_room(|out| out.write(bytes)) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.with_room(W::flush) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pipe() -> (io::PipeReader, OutletThread) {
        let (reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::start("out", Box::new(writer), |_| {}).unwrap();
        (reader, outlet)
    }

    #[test]
    fn everything_arrives_in_order_also_at_a_slow_reader() {
        let (mut reader, mut thread) = pipe();
        let text: Vec<u8> = (0..3 * LIMIT).map(|i| (i % 251) as u8).collect();
        let outlet = thread.outlet().clone();
        let its = text.clone();
        let writer = std::thread::spawn(move || its.chunks(1000).for_each(|some| outlet.put(some)));
        let mut seen = vec![0; text.len()];
        for some in seen.chunks_mut(10_000) {
            reader.read_exact(some).unwrap();
        }
        writer.join().unwrap();
        assert!(seen == text);
        assert_eq!(thread.finish(PATIENCE), OutletFigures::default());
    }

    #[test]
    fn what_nobody_reads_is_dropped_and_counted() {
        let (_reader, mut thread) = pipe();
        let outlet = thread.outlet().clone();
        let begin = Instant::now();
        let mut put = 0;
        while !outlet.is_stalled() {
            assert!(begin.elapsed() < PATIENCE);
            outlet.put(&[b'x'; 1000]);
            put += 1000;
        }
        // From here on nothing waits.
        let stalled = Instant::now();
        for _ in 0..1000 {
            outlet.put(&[b'x'; 1000]);
        }
        assert!(stalled.elapsed() < STALL, "{:?}", stalled.elapsed());
        let figures = thread.finish(PATIENCE);
        assert_eq!(figures.error, None);
        let most = put + 1000 * 1000;
        assert!(figures.dropped > 1000 * 1000 && figures.dropped < most);
    }

    #[test]
    fn an_end_in_a_hurry_waits_for_nothing() {
        let (_reader, mut thread) = pipe();
        let outlet = thread.outlet().clone();
        outlet.hurry();
        for _ in 0..1000 {
            outlet.put(&[b'x'; 1000]);
        }
        let begin = Instant::now();
        assert!(thread.finish(Duration::ZERO).dropped > 0);
        assert!(begin.elapsed() < STALL, "{:?}", begin.elapsed());
    }

    /// Fails in the same way each time.
    struct Fails(ErrorKind);
    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_always_fails_is_an_error_in_the_end() {
        for kind in [
            ErrorKind::StorageFull,
            ErrorKind::Interrupted,
            ErrorKind::WouldBlock,
        ] {
            let mut thread = Outlet::start("out", Box::new(Fails(kind)), |_| {}).unwrap();
            thread.outlet().put(b"text");
            let begin = Instant::now();
            while thread.outlet().queue().figures.error.is_none() {
                assert!(begin.elapsed() < PATIENCE, "{kind}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let figures = thread.finish(PATIENCE);
            let error = figures.error.unwrap();
            assert!(error.contains(&kind.to_string()), "{error}");
            assert_eq!(figures.dropped, 4);
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error_unless_it_may_go() {
        let closed = || {
            let (reader, writer) = io::pipe().unwrap();
            drop(reader);
            writer
        };
        let mut thread = Outlet::start("out", Box::new(closed()), |_| {}).unwrap();
        thread.outlet().put(b"text");
        assert!(thread.finish(PATIENCE).error.is_some());
        let out = Box::new(MayClose(closed()));
        let mut thread = Outlet::start("out", out, |_| {}).unwrap();
        thread.outlet().put(b"text");
        assert_eq!(thread.finish(PATIENCE), OutletFigures::default());
    }

    #[test]
    fn a_reader_is_waited_for_where_output_has_been_made_non_blocking() {
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: changes a flag of the test's own pipe.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let text = vec![b'x'; 1 << 20];
        let mut out = MayClose(writer);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                out.write_all(&text).unwrap();
                drop(out);
            });
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == text);
        });
    }
}
