//! Looks at a machine: what it answers, and what follows from two answers.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use hmmvisor_api::{Byte, Client, ClientError, Device, Devices, Recording, Vm, Where};
use hmmvisor_devices::thread;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Rates that are kept for the lines of small bars.
const KEPT: usize = 60;

const PAGE_BYTES: f64 = 4096.0;

/// The thread that looks at the machine, so that the screen and the keys never wait for an answer. Dropping it ends the thread
/// after the look that it is at.
pub(super) struct Watcher {
    looks: Receiver<Result<Watch, ClientError>>,
    _stop: Sender<()>,
}

impl Watcher {
    /// Starts the thread. It looks after each of these times, and ends when the machine does not answer any more.
    pub(super) fn start(client: Client, mut watch: Watch, every: Duration) -> io::Result<Watcher> {
        let (stop, stopped) = mpsc::channel();
        let (send, looks) = mpsc::channel();
        let body = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let looked = watch.look(&client);
                let gone = matches!(
                    looked,
                    Err(ClientError::Connect { .. } | ClientError::Broken { .. })
                );
                if send.send(looked.map(|()| watch.clone())).is_err() || gone {
                    return;
                }
            }
        };
        thread::spawn("watch", |_| {}, body)?;
        Ok(Watcher { looks, _stop: stop })
    }

    /// Returns the newest look since the last call, or the error that ended it.
    pub(super) fn newest(&self) -> Option<Result<Watch, ClientError>> {
        self.looks.try_iter().last()
    }
}

/// What a rate is about, and where the JSON of `stats` has its counter.
#[derive(Clone)]
pub(super) struct Rate {
    pub(super) what: &'static str,
    pointer: String,
    /// What one is worth in the unit that is shown.
    each: f64,
    /// Whether it is bytes.
    pub(super) is_bytes: bool,
    before: Option<f64>,
    /// The last rates, a second, the newest last.
    pub(super) seen: VecDeque<u64>,
}

/// The rates of an accelerator.
#[derive(Clone)]
pub(super) struct AcceleratorRates {
    pub(super) faults: Rate,
    pub(super) bytes_in: Rate,
    pub(super) bytes_out: Rate,
}

impl AcceleratorRates {
    fn of(number: u32) -> AcceleratorRates {
        let at = |name: &str| format!("/accelerators/{number}/{name}");
        AcceleratorRates {
            faults: Rate::new("faults", at("faults"), 1.0, false),
            bytes_in: Rate::new("in", at("bytes_in"), 1.0, true),
            bytes_out: Rate::new("out", at("bytes_out"), 1.0, true),
        }
    }
}

/// What is known of the machine.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) vm: Vm,
    pub(super) devices: Vec<Device>,
    pub(super) recording: Recording,
    pub(super) stats: Value,
    pub(super) rates: Vec<Rate>,
    /// Faults of each vCPU.
    pub(super) vcpus: Vec<Rate>,
    /// Of each accelerator.
    pub(super) accelerators: Vec<AcceleratorRates>,
    /// A byte for each page.
    residency: Vec<u8>,
}

/// A piece of memory, as it is shown.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Cell {
    /// Pages with contents.
    pub(super) used: u32,
    /// Those of them in accelerators' memories.
    pub(super) on_devices: u32,
    /// Those whose contents are lost.
    pub(super) poisoned: u32,
}

fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, ClientError> {
    let answer = client.get(path)?;
    serde_json::from_slice(&answer.body).map_err(|error| {
        ClientError::Request(format!("the machine's answer about {path}: {error}"))
    })
}

impl Watch {
    pub(super) fn begin(client: &Client) -> Result<Watch, ClientError> {
        let faults = |what, pointer: &str| Rate::new(what, pointer.to_owned(), 1.0, false);
        let moved = |what, pointer: &str| Rate::new(what, pointer.to_owned(), PAGE_BYTES, true);
        let vm: Vm = get(client, "/v1/vm")?;
        let vcpu = |vcpu| faults("faults", &format!("/vcpu_faults/{vcpu}"));
        let mut watch = Watch {
            vcpus: (0..vm.vcpus).map(vcpu).collect(),
            accelerators: (0..vm.devices).map(AcceleratorRates::of).collect(),
            vm,
            devices: Vec::new(),
            recording: Recording::default(),
            stats: Value::Null,
            rates: vec![
                faults("CPU faults", "/cpu_faults"),
                faults("device faults", "/device_faults"),
                moved("in: demand", "/migrations_to_device/demand"),
                moved("in: prefetch", "/migrations_to_device/prefetch"),
                moved("between", "/pages_between_devices"),
                moved("out: demand", "/migrations_to_system/demand"),
                moved("out: prefetch", "/migrations_to_system/prefetch"),
                moved("out: evicted", "/migrations_to_system/eviction"),
                moved("out: user", "/migrations_to_system/user"),
            ],
            residency: Vec::new(),
        };
        watch.look(client)?;
        Ok(watch)
    }

    /// Asks the machine for everything that is shown.
    pub(super) fn look(&mut self, client: &Client) -> Result<(), ClientError> {
        let before = self.vm.uptime_s;
        self.vm = get(client, "/v1/vm")?;
        self.devices = get::<Devices>(client, "/v1/devices")?.devices;
        self.recording = get(client, "/v1/recording")?;
        self.stats = get(client, "/v1/stats")?;
        let path = format!(
            "/v1/memory/residency/bytes?first=0&pages={}",
            self.memory_pages()
        );
        self.residency = client.get(&path)?.body;
        let seconds = (self.vm.uptime_s - before).max(1e-3);
        let accelerators = self.accelerators.iter_mut();
        let of_accelerators =
            accelerators.flat_map(|it| [&mut it.faults, &mut it.bytes_in, &mut it.bytes_out]);
        let rates = self.rates.iter_mut().chain(&mut self.vcpus);
        for rate in rates.chain(of_accelerators) {
            let now = self.stats.pointer(&rate.pointer).and_then(Value::as_f64);
            let now = now.unwrap_or(0.0);
            rate.add(now, seconds);
        }
        Ok(())
    }

    /// The number of pages of managed memory.
    pub(super) fn memory_pages(&self) -> u32 {
        (self.vm.memory_bytes / 4096) as u32
    }

    /// Divides memory into this many cells of neighbouring pages.
    pub(super) fn cells(&self, count: usize) -> Vec<Cell> {
        cells(&self.residency, count)
    }

    /// Returns a number of the JSON of `stats`; 0 if it is not there.
    pub(super) fn number(&self, pointer: &str) -> f64 {
        let number = self.stats.pointer(pointer).and_then(Value::as_f64);
        number.unwrap_or(0.0)
    }
}

impl Rate {
    fn new(what: &'static str, pointer: String, each: f64, is_bytes: bool) -> Rate {
        Rate {
            what,
            pointer,
            each,
            is_bytes,
            before: None,
            seen: VecDeque::new(),
        }
    }

    fn add(&mut self, now: f64, seconds: f64) {
        if let Some(before) = self.before.replace(now) {
            let rate = (now - before) * self.each / seconds;
            self.seen.push_back(rate.max(0.0) as u64);
        }
        if self.seen.len() > KEPT {
            self.seen.pop_front();
        }
    }

    /// The newest rate.
    pub(super) fn now(&self) -> u64 {
        self.seen.back().copied().unwrap_or(0)
    }
}

fn cells(residency: &[u8], count: usize) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); count.min(residency.len())];
    let count = cells.len();
    for (page, byte) in residency.iter().enumerate() {
        let cell = &mut cells[page * count / residency.len()];
        let place = Byte(*byte).place();
        match place {
            Where::Untouched => continue,
            Where::Device | Where::Coherent | Where::Duplicated => cell.on_devices += 1,
            Where::Poisoned => cell.poisoned += 1,
            Where::System | Where::Exclusive => {}
        }
        cell.used += 1;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_all_pages() {
        let byte = |place, device| Byte::new(place, device, false).0;
        let (untouched, system) = (byte(Where::Untouched, None), byte(Where::System, None));
        let (device, lost) = (byte(Where::Device, Some(3)), byte(Where::Poisoned, None));
        let pages = [untouched, untouched, system, device, device, device, lost];
        let cell = |used, on_devices, poisoned| Cell {
            used,
            on_devices,
            poisoned,
        };
        assert_eq!(cells(&pages, 1), [cell(5, 3, 1)]);
        assert_eq!(cells(&pages, 2), [cell(2, 1, 0), cell(3, 2, 1)]);
        // No more cells than pages.
        assert_eq!(cells(&pages, 100).len(), pages.len());
        assert_eq!(cells(&[], 5), []);
    }

    #[test]
    fn rates_are_by_the_second() {
        let mut rate = Rate::new("", String::new(), 4096.0, true);
        rate.add(10.0, 1.0);
        assert_eq!(rate.now(), 0);
        rate.add(30.0, 0.5);
        assert_eq!(rate.now(), 40 * 4096);
    }
}
