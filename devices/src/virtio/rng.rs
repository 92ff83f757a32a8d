//! The entropy device: random bytes of the host's kernel.

use std::io;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{Model, Parts, Port, Reply};
use super::queue::{Chain, Malformed};
use super::registers::Profile;
use crate::retry;

/// Bytes for one request at most: a driver that wants more asks again.
const MOST_BYTES: u64 = 4096;
/// Slots of its queue.
const SLOTS: u16 = 64;

/// An entropy device.
pub fn parts() -> Parts {
    Parts {
        name: "virtio-rng".to_owned(),
        profile: Profile {
            id: VIRTIO_ID_RNG,
            features: 1 << VIRTIO_F_VERSION_1
                | 1 << VIRTIO_RING_F_INDIRECT_DESC
                | 1 << VIRTIO_RING_F_EVENT_IDX,
            queues: vec![SLOTS],
            config: Vec::new(),
            writable: Vec::new(),
        },
        model: Box::new(Rng),
        immediate: None,
    }
}

struct Rng;

impl Model for Rng {
    fn request(&mut self, port: &Port, _: usize, chain: &Chain) -> Result<Reply, Malformed> {
        if !chain.readable.0.is_empty() {
            return Err(Malformed::Request("entropy is only written"));
        }
        let mut bytes = vec![0; chain.writable.bytes().min(MOST_BYTES) as usize];
        if fill(&mut bytes).is_err() {
            return Ok(Reply::Used(0));
        }
        let written = port.ram().write(&chain.writable, 0, &bytes);
        Ok(Reply::Used(written.map_or(0, |()| bytes.len() as u32)))
    }
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let left = &mut bytes[done..];
        let once = || {
            // SAFETY: so many writable bytes, as the length says.
            let got = unsafe { libc::getrandom(left.as_mut_ptr().cast(), left.len(), 0) };
            retry::result(got)
        };
        match retry::interrupted(once)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => done += got,
        }
    }
    Ok(())
}
