//! The balloon: memory that the guest gives back, on request or of its own accord.
//!
//! Whatever the way (inflation, free page reporting, free page hinting), the pages go the way of every free
//! ([`hmm_backend::Backend::guest_freed`]) before the driver hears that the request is done: neighbours together, nothing
//! copied, `page_free` for those in a device's memory. A page that the guest touches again is zeros. So deflation needs
//! nothing.

use std::sync::Arc;

use hmm_backend::pages::PAGE_SIZE;
use parking_lot::Mutex;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::device::{DeviceError, Model, Parts, Port, Reply, VirtioDevice};
use super::queue::{Chain, Malformed};
use super::ram::GuestRam;
use super::registers::{Profile, feature_bits};
use super::statistics::{self, Statistics};
use crate::Interrupt;
use crate::guest_bytes::GuestBytes;

const F_STATISTICS: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_HINTING: u32 = 3;
const F_PAGE_POISON: u32 = 4;
const F_REPORTING: u32 = 5;

// Queues.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const HINTING: usize = 3;
const REPORTING: usize = 4;
const QUEUES: usize = 5;
const SLOTS: u16 = 128;

// Fields of the configuration space, 4 bytes each.
const TARGET: usize = 0;
const ACTUAL: usize = 4;
const COMMAND: usize = 8;
const POISON: usize = 12;
const CONFIG_BYTES: usize = 16;

// Commands for hinting. All others are numbers of rounds.
const STOP: u32 = 0;
const DONE: u32 = 1;
const FIRST_ROUND: u32 = 2;

/// Bytes of page numbers in one request, at most. Linux sends 1024.
const MOST_NUMBERS: u64 = 64 << 10;

/// A target that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("balloon of {bytes} bytes: the guest has only {most}")]
pub struct BalloonError {
    /// The target.
    pub bytes: u64,
    /// Guest memory.
    pub most: u64,
}

/// How far free page hinting is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Hinting {
    /// It was never started, or it was stopped.
    #[default]
    Off,
    /// The driver is to begin.
    Asked,
    /// The driver names pages.
    Running,
    /// The driver has named all it has.
    Done,
}

/// Managed pages that were given back and had contents, by the way they came.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct BalloonFigures {
    /// Pages that came by inflation.
    pub inflated: u64,
    /// Pages that came by free page reporting.
    pub reported: u64,
    /// Pages that came by free page hinting.
    pub hinted: u64,
}

/// A memory balloon: the host's interface for getting memory back from the guest.
pub struct Balloon {
    device: Arc<VirtioDevice>,
    books: Arc<Mutex<Books>>,
    most: u64,
}

/// The state that the device's thread shares with other threads.
#[derive(Default)]
struct Books {
    figures: BalloonFigures,
    statistics: Option<Statistics>,
    /// How many statistics have come.
    received: u64,
    /// Whether new statistics are wanted.
    wanted: bool,
    hinting: Hinting,
    last_round: u32,
    /// The bytes that the last driver had given back when it reset the device.
    at_reset: u64,
}

fn field(config: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(config[at..at + 4].try_into().expect("four bytes"))
}

fn set_field(config: &mut [u8], at: usize, value: u32) {
    config[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

impl Balloon {
    /// A balloon whose driver is to give back `target` bytes at first.
    pub fn new(
        target: u64,
        ram: GuestRam,
        irq: Box<dyn Interrupt>,
    ) -> Result<Balloon, DeviceError> {
        let most = ram.bytes();
        let books: Arc<Mutex<Books>> = Arc::default();
        let mut config = vec![0; CONFIG_BYTES];
        set_field(&mut config, TARGET, pages(target.min(most)));
        // Without event indices: a driver that is asked not to ring might leave hints lying about.
        let features = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            F_STATISTICS,
            F_DEFLATE_ON_OOM,
            F_HINTING,
            F_PAGE_POISON,
            F_REPORTING,
        ];
        let parts = Parts {
            name: "virtio-balloon".to_owned(),
            profile: Profile {
                id: VIRTIO_ID_BALLOON,
                features: feature_bits(&features),
                queues: vec![SLOTS; QUEUES],
                config,
                writable: vec![ACTUAL..ACTUAL + 4, POISON..POISON + 4],
            },
            model: Box::new(Device {
                books: books.clone(),
                features: 0,
                statistics: None,
                round: None,
            }),
            // A driver may take hinted pages back without a notice, but not while it rings the doorbell: the pages it has just named are
            // not in its list yet. So hints are taken at once or not at all; see `docs/devices.md`.
            immediate: Some(HINTING as u32),
        };
        Ok(Balloon {
            device: Arc::new(VirtioDevice::new(parts, ram, irq)?),
            books,
            most,
        })
    }

    /// The device, to be plugged in.
    pub fn device(&self) -> &Arc<VirtioDevice> {
        &self.device
    }

    /// Has the guest give back this much, in all, or take back what it gave beyond. It does so as it can:
    /// [`Self::actual`] tells how far it is.
    pub fn set_target(&self, bytes: u64) -> Result<(), BalloonError> {
        if bytes > self.most {
            let most = self.most;
            return Err(BalloonError { bytes, most });
        }
        self.set(TARGET, pages(bytes));
        Ok(())
    }

    /// How much the guest is to give back, in bytes.
    pub fn target(&self) -> u64 {
        self.bytes(TARGET)
    }

    /// How much it has given back by inflation, as it says, in bytes.
    pub fn actual(&self) -> u64 {
        self.bytes(ACTUAL)
    }

    /// How much the guest has given back by inflation, in bytes; if the driver has reset the device, how much it had given
    /// back before that. Operating systems reset their devices before they switch the machine off.
    pub fn last_actual(&self) -> u64 {
        self.actual().max(self.books.lock().at_reset)
    }

    fn set(&self, at: usize, value: u32) {
        let port = self.device.port();
        port.change_config(|config| set_field(config, at, value));
    }

    fn bytes(&self, at: usize) -> u64 {
        self.device.port().config(|config| bytes(config, at))
    }

    /// Asks the guest for new figures about its memory.
    pub fn request_statistics(&self) {
        self.books.lock().wanted = true;
        self.device.port().wake();
    }

    /// The last figures, and how many have come so far: a driver sends some when it starts, and then when it is asked.
    pub fn statistics(&self) -> Option<(u64, Statistics)> {
        let books = self.books.lock();
        Some((books.received, books.statistics?))
    }

    /// Asks the guest to name all of its unused pages at once; they are freed. Afterwards the guest takes them
    /// back.
    pub fn start_hinting(&self) {
        let round = {
            let mut books = self.books.lock();
            books.hinting = Hinting::Asked;
            // Never the number of the round before.
            books.last_round = books.last_round.wrapping_add(1).max(FIRST_ROUND);
            books.last_round
        };
        self.set(COMMAND, round);
    }

    /// Asks the guest to stop hinting before it has named all of its unused pages.
    pub fn stop_hinting(&self) {
        self.books.lock().hinting = Hinting::Off;
        self.set(COMMAND, STOP);
    }

    /// How far hinting is.
    pub fn hinting(&self) -> Hinting {
        self.books.lock().hinting
    }

    /// Pages that were given back so far.
    pub fn figures(&self) -> BalloonFigures {
        self.books.lock().figures
    }
}

/// A field that counts pages, in bytes.
fn bytes(config: &[u8], at: usize) -> u64 {
    u64::from(field(config, at)) * PAGE_SIZE
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

/// The device's side.
struct Device {
    books: Arc<Mutex<Books>>,
    features: u64,
    /// The buffer in which the driver sent figures: it gets it back when new ones are wanted.
    statistics: Option<u16>,
    /// The round of hinting that the driver says it is in.
    round: Option<u32>,
}

impl Model for Device {
    fn start(&mut self, features: u64) {
        self.features = features;
        self.books.lock().at_reset = 0;
    }

    fn request(&mut self, port: &Port, queue: usize, chain: &Chain) -> Result<Reply, Malformed> {
        match queue {
            INFLATE => {
                let freed = port.ram().free(numbered_pages(port, chain)?)?;
                self.books.lock().figures.inflated += freed;
            }
            STATISTICS => return self.statistics(port, chain),
            HINTING => self.hinted(port, chain)?,
            REPORTING => {
                let freed = self.unused(port, chain)?;
                self.books.lock().figures.reported += freed;
            }
            // Pages come back when they are touched.
            DEFLATE | QUEUES.. => {}
        }
        Ok(Reply::Used(0))
    }

    fn finished(&mut self, _: &Port, queue: usize) -> Option<(u16, u32)> {
        if queue != STATISTICS || self.statistics.is_none() {
            return None;
        }
        let wanted = std::mem::take(&mut self.books.lock().wanted);
        let head = wanted.then(|| self.statistics.take())??;
        Some((head, 0))
    }

    fn reset(&mut self, port: &Port) {
        self.features = 0;
        self.statistics = None;
        self.round = None;
        let actual = port.config(|config| bytes(config, ACTUAL));
        {
            let mut books = self.books.lock();
            books.hinting = Hinting::Off;
            // A second reset in a row finds 0 in the register, and must not replace what the first one found.
            books.at_reset = books.at_reset.max(actual);
        }
        // The next driver begins with nothing given back. What it is to give back stays.
        port.change_config(|config| {
            set_field(config, ACTUAL, 0);
            set_field(config, COMMAND, STOP);
            set_field(config, POISON, 0);
        });
    }
}

impl Device {
    fn statistics(&mut self, port: &Port, chain: &Chain) -> Result<Reply, Malformed> {
        if self.statistics.is_some() {
            return Err(Malformed::Request("a second buffer of statistics"));
        }
        let len = chain.readable.bytes().min(statistics::MOST_BYTES);
        let mut bytes = vec![0; len as usize];
        port.ram().read(&chain.readable, 0, &mut bytes)?;
        let mut books = self.books.lock();
        books.statistics = Some(Statistics::parse(&bytes));
        books.received += 1;
        self.statistics = Some(chain.head);
        Ok(Reply::Keep)
    }

    /// Handles a hint: the part that the device reads is a command, the part that it may write names pages.
    fn hinted(&mut self, port: &Port, chain: &Chain) -> Result<(), Malformed> {
        if !chain.readable.0.is_empty() {
            let mut command = [0; 4];
            if chain.readable.bytes() != command.len() as u64 {
                return Err(Malformed::Request("a hinting command that is not 4 bytes"));
            }
            port.ram().read(&chain.readable, 0, &mut command)?;
            self.command(port, u32::from_le_bytes(command));
        }
        // Pages are freed only while the driver is in the round that was asked for: those of another may be in use again.
        let asked = port.config(|config| field(config, COMMAND));
        if self.round == Some(asked) {
            let freed = self.unused(port, chain)?;
            self.books.lock().figures.hinted += freed;
        }
        Ok(())
    }

    fn command(&mut self, port: &Port, command: u32) {
        let asked = port.config(|config| field(config, COMMAND));
        if command >= FIRST_ROUND && command == asked {
            self.round = Some(command);
            self.books.lock().hinting = Hinting::Running;
            return;
        }
        let ended = self.round.take();
        if command != STOP {
            return;
        }
        // The driver may have its pages back, unless another round has been asked for.
        port.change_config(|config| {
            let asked = field(config, COMMAND);
            if Some(asked) == ended || asked == STOP {
                set_field(config, COMMAND, DONE);
            }
        });
        let mut books = self.books.lock();
        if books.hinting == Hinting::Running && Some(books.last_round) == ended {
            books.hinting = Hinting::Done;
        }
    }

    /// Frees what a chain names by its buffers.
    fn unused(&self, port: &Port, chain: &Chain) -> Result<u64, Malformed> {
        let poison = port.config(|config| field(config, POISON));
        if self.features & 1 << F_PAGE_POISON != 0 && poison != 0 {
            // The guest will look for that pattern in pages that it has freed, and zeros are another one.
            return Ok(0);
        }
        Ok(port.ram().free(chain.writable.0.iter().copied())?)
    }
}

/// The pages whose numbers are in a request.
fn numbered_pages(port: &Port, chain: &Chain) -> Result<Vec<GuestBytes>, Malformed> {
    let len = chain.readable.bytes();
    if !len.is_multiple_of(4) || len > MOST_NUMBERS {
        return Err(Malformed::Request("too many page numbers, or half of one"));
    }
    let mut numbers = vec![0; len as usize];
    port.ram().read(&chain.readable, 0, &mut numbers)?;
    let page = |number: &[u8]| GuestBytes::new(u64::from(field(number, 0)) * PAGE_SIZE, PAGE_SIZE);
    Ok(numbers.chunks_exact(4).map(page).collect())
}
