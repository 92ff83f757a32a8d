//! Guest memory as virtio devices reach it: by guest-physical address, and pinned while it is in use.
//!
//! A device's thread never touches a managed page that is not pinned. A page in a device's memory migrates back when it
//! is pinned, as by any CPU access; and a page that cannot be supplied is an error of the request, not a thread that sleeps
//! in a fault for ever.

use std::sync::Arc;

use hmm_backend::pages::{Access, PAGE_SIZE, Page, PageRange};
use hmm_backend::{Backend, Pinned};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};

use crate::guest_bytes::{GuestBuffer, GuestBytes, merged};

/// Why guest memory could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// There is no such memory.
    #[error("{} bytes at guest-physical {:#x} are not all memory", .0.len, .0.addr)]
    OutOfRange(GuestBytes),
    /// The contents cannot be supplied.
    #[error("guest-physical {addr:#x} cannot be reached: {error}")]
    Unavailable {
        /// The first page that was wanted.
        addr: u64,
        /// Why not.
        #[source]
        error: hmm_backend::Error,
    },
    /// The device would have to write to a page that is read-only.
    #[error("guest-physical {addr:#x} is read-only")]
    ReadOnly {
        /// The page's address.
        addr: u64,
    },
}

/// The guest's memory: managed memory, and memory that never migrates.
pub struct GuestRam {
    backend: Arc<Backend>,
    fixed: GuestMemoryMmap,
    /// Sorted; no overlaps.
    regions: Vec<Region>,
}

#[derive(Clone, Copy)]
struct Region {
    span: GuestBytes,
    /// The first page, if it is managed memory.
    managed: Option<Page>,
}

impl Region {
    fn pages(&self, part: GuestBytes) -> Option<PageRange> {
        let page = |bytes: u64| (bytes / PAGE_SIZE) as u32;
        let first = self.managed?.plus(page(part.addr - self.span.addr));
        Some(PageRange::with_len(first, page(part.len)))
    }
}

fn unavailable(part: GuestBytes) -> impl Fn(hmm_backend::Error) -> RamError {
    let addr = part.addr;
    move |error| RamError::Unavailable { addr, error }
}

impl GuestRam {
    /// All of managed memory, and no other memory: page 0 is at guest-physical address `base`, and the others are as far from it as
    /// their numbers say.
    pub fn managed(backend: &Arc<Backend>, base: u64) -> GuestRam {
        let (hole, end) = (backend.hole(), Page(backend.pages()));
        let parts = match hole.is_empty() {
            true => vec![(Page(0), end)],
            false => vec![(Page(0), hole.start), (hole.end, end)],
        };
        let at = |(start, end): (Page, Page)| (base + start.offset(), PageRange::new(start, end));
        let parts = parts.into_iter().map(at);
        GuestRam::new(backend, parts, GuestMemoryMmap::default())
    }

    /// Pages of managed memory, each range from its page-aligned guest-physical address on, and other memory. They must not
    /// overlap.
    pub fn new(
        backend: &Arc<Backend>,
        managed: impl IntoIterator<Item = (u64, PageRange)>,
        fixed: GuestMemoryMmap,
    ) -> GuestRam {
        let managed = managed.into_iter().map(|(addr, pages)| Region {
            span: GuestBytes::new(addr, u64::from(pages.len()) * PAGE_SIZE),
            managed: Some(pages.start),
        });
        let others = fixed.iter().map(|region| Region {
            span: GuestBytes::new(region.start_addr().0, region.len()),
            managed: None,
        });
        let mut regions: Vec<Region> = managed.chain(others).collect();
        regions.sort_unstable_by_key(|region| region.span);
        GuestRam {
            backend: backend.clone(),
            fixed,
            regions,
        }
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.span.len).sum()
    }

    /// Whether all of the bytes are memory. A span of no bytes is memory wherever it is.
    pub fn contains(&self, span: GuestBytes) -> bool {
        self.parts(span).is_ok()
    }

    /// Cuts the bytes at the regions' borders.
    fn parts(&self, span: GuestBytes) -> Result<Vec<(Region, GuestBytes)>, RamError> {
        let outside = || RamError::OutOfRange(span);
        let end = span.end().ok_or_else(outside)?;
        let mut parts = Vec::new();
        let mut at = span.addr;
        while at < end {
            let behind = self.regions.partition_point(|it| it.span.addr <= at);
            let region = behind.checked_sub(1).map(|index| self.regions[index]);
            let region = region.ok_or_else(outside)?;
            let stop = (region.span.addr + region.span.len).min(end);
            if stop <= at {
                return Err(outside());
            }
            parts.push((region, GuestBytes::new(at, stop - at)));
            at = stop;
        }
        Ok(parts)
    }

    /// Keeps the pages of these bytes in system memory, each page once. Sleeps as long as it takes to bring them there.
    pub fn pin(
        self: &Arc<Self>,
        spans: impl IntoIterator<Item = GuestBytes>,
        to: Access,
    ) -> Result<PinnedRam, RamError> {
        let whole = |span: GuestBytes| span.touched_pages().ok_or(RamError::OutOfRange(span));
        let spans: Result<Vec<GuestBytes>, RamError> = spans.into_iter().map(whole).collect();
        let mut pinned = PinnedRam {
            pieces: Vec::new(),
            _ram: self.clone(),
        };
        for span in merged(spans?) {
            for (region, part) in self.parts(span)? {
                pinned.pieces.push(self.pin_part(&region, part, to)?);
            }
        }
        Ok(pinned)
    }

    fn pin_part(&self, region: &Region, part: GuestBytes, to: Access) -> Result<Piece, RamError> {
        let Some(pages) = region.pages(part) else {
            let host = self.fixed.get_host_address(GuestAddress(part.addr));
            return Ok(Piece {
                span: part,
                host: host.map_err(|_| RamError::OutOfRange(part))?,
                _pin: None,
            });
        };
        let pin = self.backend.pin(pages).map_err(unavailable(part))?;
        if to == Access::Write {
            // A read-only page is refused: the kernel, which writes for this thread, would take a fault that cannot be resolved.
            for (index, page) in (0..).zip(pages.pages()) {
                if self
                    .backend
                    .word(page)
                    .map_err(unavailable(part))?
                    .read_only()
                {
                    let addr = part.addr + index * PAGE_SIZE;
                    return Err(RamError::ReadOnly { addr });
                }
            }
        }
        Ok(Piece {
            span: part,
            host: pin.host(),
            _pin: Some(pin),
        })
    }

    /// Pins `len` of these bytes from `at` on, of which there must be that many.
    fn pin_some(
        self: &Arc<Self>,
        spans: &GuestBuffer,
        at: u64,
        len: usize,
        to: Access,
    ) -> Result<(GuestBuffer, PinnedRam), RamError> {
        let part = spans.part(at, len as u64);
        assert_eq!(part.bytes(), len as u64, "the caller has counted them");
        let pinned = self.pin(part.0.iter().copied(), to)?;
        Ok((part, pinned))
    }

    /// Copies bytes out of guest memory: `into.len()` of these from `at` on, of which there must be that many.
    pub fn read(
        self: &Arc<Self>,
        spans: &GuestBuffer,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), RamError> {
        let (part, pinned) = self.pin_some(spans, at, into.len(), Access::Read)?;
        let mut done = 0;
        for slice in part.0.iter().flat_map(|span| pinned.slices(*span)) {
            done += slice.copy_to(&mut into[done..]);
        }
        Ok(())
    }

    /// Copies `from` into guest memory, over these bytes from `at` on, of which there must be that many.
    pub fn write(
        self: &Arc<Self>,
        spans: &GuestBuffer,
        at: u64,
        from: &[u8],
    ) -> Result<(), RamError> {
        let (part, pinned) = self.pin_some(spans, at, from.len(), Access::Write)?;
        let mut done = 0;
        for slice in part.0.iter().flat_map(|span| pinned.slices(*span)) {
            let end = done + slice.len();
            slice.copy_from(&from[done..end]);
            done = end;
        }
        Ok(())
    }

    /// Frees the whole pages among these bytes, neighbours together, because the guest no longer needs their contents.
    /// Managed pages go the way of every free; other memory goes back to the host. All of it reads as zeros from now on, except pages that are
    /// pinned. Returns the number of managed pages that had contents.
    pub fn free(&self, spans: impl IntoIterator<Item = GuestBytes>) -> Result<u64, RamError> {
        let whole = spans
            .into_iter()
            .filter_map(GuestBytes::whole_pages)
            .collect();
        let mut freed = 0;
        for span in merged(whole) {
            for (region, part) in self.parts(span)? {
                freed += match region.pages(part) {
                    Some(pages) => {
                        let freed = self.backend.guest_freed(pages);
                        freed.map_err(unavailable(part))?
                    }
                    None => self.discard(part),
                };
            }
        }
        Ok(freed)
    }

    /// Gives memory that never migrates back to the host.
    fn discard(&self, part: GuestBytes) -> u64 {
        if let Ok(host) = self.fixed.get_host_address(GuestAddress(part.addr)) {
            // SAFETY: whole pages of one mapping that `self.fixed` keeps. They are guest memory, which no Rust reference
            // points into and which may become zeros at any time. If the kernel refuses, they keep their contents: the
            // guest does not rely on zeros there.
            unsafe { libc::madvise(host.cast(), part.len as usize, libc::MADV_DONTNEED) };
        }
        0
    }
}

/// Guest memory that stays where it is while this lives.
pub struct PinnedRam {
    /// Sorted; no overlaps.
    pieces: Vec<Piece>,
    // Keeps the mappings.
    _ram: Arc<GuestRam>,
}

struct Piece {
    span: GuestBytes,
    host: *mut u8,
    _pin: Option<Pinned>,
}

// SAFETY: what the pointers lead to is guest memory, which is mapped and stays in place as long as the pins and the
// mappings' owner, which move along. It is accessed by all threads anyway, through volatile accesses only.
unsafe impl Send for PinnedRam {}

impl PinnedRam {
    /// The bytes from `addr` on as this process reaches them, up to the end of the piece. None if `addr` is not pinned.
    pub fn at(&self, addr: u64) -> Option<(*mut u8, u64)> {
        let behind = self.pieces.partition_point(|it| it.span.addr <= addr);
        let piece = &self.pieces[behind.checked_sub(1)?];
        let offset = addr - piece.span.addr;
        let left = piece.span.len.checked_sub(offset)?;
        (left > 0).then(|| (piece.host.wrapping_add(offset as usize), left))
    }

    /// These bytes, which are pinned.
    pub fn slices(&self, span: GuestBytes) -> impl Iterator<Item = VolatileSlice<'_>> {
        let (mut addr, mut left) = (span.addr, span.len);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let (host, bytes) = self.at(addr).expect("only what is pinned is asked for");
            let len = bytes.min(left);
            (addr, left) = (addr + len, left - len);
            // SAFETY: so many bytes of pinned guest memory, which stay in place as long as `self`, whose borrow the
            // slice has. All accesses to it are volatile.
            Some(unsafe { VolatileSlice::new(host, len as usize) })
        })
    }
}

#[cfg(test)]
mod tests {
    use hmm_backend::BackendConfig;

    use super::*;

    const FIXED: u64 = 0x10_0000;

    /// Two halves of managed memory, the second one first and next to memory that never migrates.
    fn ram() -> Arc<GuestRam> {
        let backend = Backend::new(BackendConfig::new(2 << 20)).expect("userfaultfd");
        let (first, second) = (Page(0), Page(256));
        let fixed = GuestMemoryMmap::from_ranges(&[(GuestAddress(FIXED), 0x10_0000)]);
        let managed = [
            (0x100_0000, PageRange::new(first, second)),
            (0, PageRange::new(second, Page(512))),
        ];
        Arc::new(GuestRam::new(&backend, managed, fixed.expect("memory")))
    }

    fn span(addr: u64, len: u64) -> GuestBytes {
        GuestBytes { addr, len }
    }

    #[test]
    fn memory_is_where_it_is_said_to_be() {
        let ram = ram();
        assert_eq!(ram.bytes(), 3 << 20);
        for inside in [
            span(0, 1),
            span(0, 2 << 20),
            span((2 << 20) - 1, 1),
            span(0x100_0000, 1 << 20),
            span(77 << 30, 0),
        ] {
            assert!(ram.contains(inside), "{inside:?}");
        }
        for outside in [
            span(0, (2 << 20) + 1),
            span(2 << 20, 1),
            span(0xff_ffff, 2),
            span(0x110_0000, 1),
            span(u64::MAX, 1),
            span(u64::MAX, u64::MAX),
        ] {
            assert!(!ram.contains(outside), "{outside:?}");
            assert!(ram.pin([outside], Access::Read).is_err(), "{outside:?}");
        }
        assert!(ram.free([span((2 << 20) - 4096, 8192)]).is_err());
    }

    #[test]
    fn a_hole_is_no_memory() {
        let backend = Backend::new(BackendConfig {
            hole: PageRange::new(Page(512), Page(1024)),
            ..BackendConfig::new(6 << 20)
        });
        let ram = Arc::new(GuestRam::managed(&backend.expect("userfaultfd"), 1 << 32));
        assert_eq!(ram.bytes(), 4 << 20);
        let at = |bytes: u64| (1 << 32) + bytes;
        assert!(ram.contains(span(at(0), 2 << 20)) && ram.contains(span(at(4 << 20), 2 << 20)));
        assert!(!ram.contains(span(at((2 << 20) - 1), 2)));
        assert!(!ram.contains(span(at((4 << 20) - 1), 2)));
        ram.write(&GuestBuffer(vec![span(at(4 << 20), 4)]), 0, b"here")
            .expect("it is memory");
        assert_eq!(
            ram.free([span(at(4 << 20), 4096)]).expect("it is memory"),
            1
        );
    }

    #[test]
    fn bytes_go_over_the_border_of_regions() {
        let ram = ram();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let spans = GuestBuffer(vec![span(FIXED - 5000, 9000), span(0x100_0000, 1000)]);
        ram.write(&spans, 0, &bytes).expect("it is memory");
        let mut read = vec![0; 9000];
        ram.read(&spans, 1000, &mut read).expect("it is memory");
        assert!(read == bytes[1000..]);

        // A page is pinned once, however often it is named; after an error no page stays pinned.
        let same = [span(8, 8), span(16, 8), span(0, 4096)];
        let pins = |page| ram.backend.word(Page(page)).expect("a page").pins();
        let pinned = ram.pin(same, Access::Write).expect("it is memory");
        assert_eq!(
            (pins(256), pinned.at(4095).map(|(_, left)| left)),
            (1, Some(1))
        );
        assert!(pinned.at(4096).is_none() && pinned.at(u64::MAX).is_none());
        drop(pinned);
        assert_eq!(pins(256), 0);

        // Three whole pages, one of which never migrates.
        let whole = [span(FIXED - 8192, 8192 + 4096 + 4095)];
        let freed = ram.free(whole).expect("it is memory");
        assert_eq!(freed, 2);
        let mut read = vec![1; 10_000];
        ram.read(&spans, 0, &mut read).expect("it is memory");
        assert!(read[..9000].iter().all(|byte| *byte == 0));
        assert!(read[9000..] == bytes[9000..]);
    }
}
