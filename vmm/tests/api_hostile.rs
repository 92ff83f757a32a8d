//! Clients that do all that a client should not: others are served meanwhile, the process's memory and descriptors stay
//! bounded, and the run ends in good order.

mod live;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use hmmvisor_api::{ClientError, Memory, Vm, VmState};
use live::{Machine, PATIENCE, wait_until};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What the process's memory may grow by: the API's bounds allow some of it, a leak of what is sent here would take far more.
const GROWTH: u64 = 128 << 20;
/// Connections that are served at a time.
const CONNECTIONS: usize = 128;
/// Clients that may read events at a time.
const STREAMS: usize = 32;

/// A machine, and what its process had before hostile clients came.
struct Besieged {
    machine: Machine,
    resident: u64,
    descriptors: usize,
}

impl Besieged {
    fn start() -> Besieged {
        // The default policy soon has few faults.
        let machine = Machine::start(&["--policy", "on-demand+lru"]);
        // The guest's pages and the API's threads are there by now.
        wait_until("the guest's work", || {
            machine.get::<Value>("/v1/stats")["cpu_faults"].as_u64() > Some(1000)
        });
        let (resident, descriptors) = (machine.resident(), machine.descriptors());
        Besieged {
            machine,
            resident,
            descriptors,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.machine.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection on which this has been sent.
    fn sent(&self, text: &str) -> UnixStream {
        let mut stream = self.connect();
        // On a busy host it may have had to make room already.
        let _ = stream.write_all(text.as_bytes());
        stream
    }

    /// Another client asks. It asks again if, on a busy host, so much time went by between its connection and its request that it
    /// had to make room.
    fn asked<T: DeserializeOwned>(&self, path: &str) -> T {
        let mut body = Vec::new();
        wait_until("an answer", || match self.machine.client.get(path) {
            Ok(answer) => {
                body = answer.body;
                true
            }
            Err(ClientError::Broken { .. }) => false,
            Err(other) => panic!("{other}"),
        });
        serde_json::from_slice(&body).unwrap()
    }

    /// Another client asks a few things, and the process has no more than it should.
    fn serves_others(&self) {
        for _ in 0..5 {
            assert_eq!(self.asked::<Memory>("/v1/memory").pages, 65536);
            assert_eq!(self.asked::<Vm>("/v1/vm").state, VmState::Running);
        }
        let (resident, descriptors) = (self.machine.resident(), self.machine.descriptors());
        let before = self.resident;
        assert!(resident < before + GROWTH, "{before} bytes, now {resident}");
        let before = self.descriptors;
        // The connections, and what the requests above open for a moment.
        let bound = before + CONNECTIONS + 32;
        assert!(
            descriptors < bound,
            "{before} descriptors, now {descriptors}"
        );
    }

    fn end(self) {
        self.serves_others();
        let report = self.machine.stop();
        assert_eq!(report["end"], "quit");
    }
}

const HEAD: &str =
    "POST /v1/memory/poison HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

/// All that comes until the connection ends.
fn rest(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    // A connection may be reset after the answer.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The client has written all, or the machine has closed the connection.
fn pour(stream: &mut UnixStream, piece: &[u8], pieces: usize) {
    for _ in 0..pieces {
        match stream.write_all(piece) {
            Ok(()) => {}
            Err(error) => {
                let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                assert!(closed.contains(&error.kind()), "{error}");
                return;
            }
        }
    }
}

#[test]
fn a_request_that_comes_byte_by_byte_ends_at_the_machines_limits() {
    let besieged = Besieged::start();
    let mut head = besieged.sent("GET /v1/vm HTTP/1.1\r\nX: ");
    let mut body = besieged.sent(&format!("{HEAD}Content-Length: 1000000000\r\n\r\n"));
    // Few enough of them are never crowded out. A byte comes with each look, until the connection is closed.
    let ends = |stream: &mut UnixStream| stream.write_all(b" ").is_err();
    wait_until("the end of the head that never ends", || {
        besieged.serves_others();
        ends(&mut head)
    });
    // Its bound in bytes is far away, too.
    body.set_nonblocking(true).unwrap();
    let mut answer = [0; 4096];
    let mut n = 0;
    wait_until("the answer to the body that never ends", || {
        besieged.serves_others();
        ends(&mut body);
        match body.read(&mut answer) {
            Ok(read) => {
                n = read;
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    });
    let answer = String::from_utf8_lossy(&answer[..n]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    besieged.end();
}

#[test]
fn requests_that_never_end_make_room() {
    let besieged = Besieged::start();
    // Far more of each kind than are served at a time; without others each could last for ten or thirty seconds.
    let idle = (0..200).map(|_| besieged.connect());
    let idle: Vec<_> = idle.collect();
    besieged.serves_others();
    let heads = (0..200).map(|_| besieged.sent("GET /v1/vm HTTP/1.1\r\nX: "));
    let heads: Vec<_> = heads.collect();
    besieged.serves_others();
    let bodies =
        (0..200).map(|_| besieged.sent(&format!("{HEAD}Content-Length: 1000000\r\n\r\n{{")));
    let mut bodies: Vec<_> = bodies.collect();
    besieged.serves_others();
    // These had to go before the others came in: not with the answer that those get whose time is over.
    for stream in bodies.drain(..200 - CONNECTIONS) {
        assert_eq!(rest(stream), "");
    }
    drop((idle, heads, bodies));
    besieged.end();
}

#[test]
fn answers_and_events_that_no_client_reads_stay_bounded() {
    let besieged = Besieged::start();
    let events = "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n";
    let streams: Vec<_> = (0..STREAMS).map(|_| besieged.sent(events)).collect();
    let status = |mut stream: &UnixStream| {
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        String::from_utf8_lossy(&status).into_owned()
    };
    for stream in &streams {
        assert_eq!(status(stream), "HTTP/1.1 200");
    }
    assert_eq!(status(&besieged.sent(events)), "HTTP/1.1 409");
    // Many answers on one connection, more than fit into the socket's buffers.
    let asked = "GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let unread = (0..CONNECTIONS).map(|_| {
        let stream = besieged.connect();
        stream.set_nonblocking(true).unwrap();
        // What finds no room is not sent: the machine reads no more requests than it answers.
        let _ = (&stream).write(asked.as_bytes());
        stream
    });
    let unread: Vec<_> = unread.collect();
    besieged.serves_others();
    let faults = || {
        let stats: Value = besieged.asked("/v1/stats");
        stats["cpu_faults"].as_u64().unwrap() + stats["device_faults"].as_u64().unwrap()
    };
    // More events than all bounds together hold: a fault makes several.
    let before = faults();
    wait_until("many events", || faults() > before + 15_000);
    besieged.serves_others();
    drop(unread);
    // The end of the run ends the streams; a client that reads late finds it.
    let Besieged { machine, .. } = besieged;
    assert_eq!(machine.stop()["end"], "quit");
    for stream in streams {
        rest(stream);
    }
}

#[test]
fn a_gibibyte_of_a_request_is_not_taken() {
    let besieged = Besieged::start();
    let piece = vec![b' '; 1 << 20];
    let pieces = 1 << 10;
    let json = "Host: x\r\nContent-Type: application/json\r\n";
    let chunk = [b"100000\r\n", &piece[..], b"\r\n"].concat();
    for (head, piece, status) in [
        // A body with its length, and one without; where a body is wanted, and where none is.
        (
            format!("PUT /v1/policy HTTP/1.1\r\n{json}Content-Length: 1073741824\r\n\r\n"),
            &piece,
            "413",
        ),
        (
            format!("PUT /v1/policy HTTP/1.1\r\n{json}Transfer-Encoding: chunked\r\n\r\n"),
            &chunk,
            "413",
        ),
        (
            "POST /v1/vm/resume HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"
                .to_owned(),
            &piece,
            "200",
        ),
        (
            "GET /v1/vm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            &chunk,
            "200",
        ),
        // Headers without end, and a path without end.
        ("GET /v1/vm HTTP/1.1\r\nX: ".to_owned(), &piece, "431"),
        ("GET /v1/".to_owned(), &piece, "400"),
    ] {
        let mut stream = besieged.sent(&head);
        pour(&mut stream, piece, pieces);
        besieged.serves_others();
        let _ = stream.shutdown(Shutdown::Write);
        let answer = rest(stream);
        // The answer may be lost with what the machine has not read.
        let expected = format!("HTTP/1.1 {status}");
        assert!(
            answer.is_empty() || answer.starts_with(&expected),
            "{head:?}: {answer:?}"
        );
    }
    besieged.end();
}

#[test]
fn ten_thousand_connections_keep_no_other_client_out() {
    let besieged = Besieged::start();
    // As many of them as this process may hold stay open.
    let most = open_files() / 2;
    let mut open = VecDeque::new();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            for n in 0..10_000 {
                if open.len() == most {
                    open.pop_front();
                }
                let mut stream = besieged.connect();
                // Every other one says something. It may have been crowded out by now.
                if n % 2 == 0 {
                    let _ = stream.write_all(b"GET /v1/vm HTTP/1.1\r\n");
                }
                open.push_back(stream);
            }
        });
        while !opening.is_finished() {
            besieged.serves_others();
        }
        opening.join().unwrap();
    });
    besieged.serves_others();
    drop(open);
    besieged.end();
}

/// Returns how many files this process may open.
fn open_files() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls read and write `limit` only.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(1 << 16);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    limit.rlim_cur as usize
}
