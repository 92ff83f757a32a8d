//! Data that the block device reports as safe is on the disk below the host's file system.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use hmm_backend::pages::Permission::Writable;
use hmmvisor_testkit::Engine;
use hmmvisor_testkit::virtio::*;
use tempfile::NamedTempFile;

use super::block::{ALL, DATA, DO_FLUSH, FLUSH, OK, OUT, request, rig};

/// Pages of a file that the host has in memory and that are not yet on its disk, as `cachestat` (Linux 6.5) says.
fn unsafe_pages(file: &File) -> u64 {
    // cachestat, which libc does not know; struct cachestat_range: off, len (0: to the end); struct cachestat: cache,
    // dirty, writeback, evicted, recently evicted.
    const CACHESTAT: i64 = 451;
    let range = [0u64; 2];
    let mut pages = [0u64; 5];
    // SAFETY: the call reads one structure and writes the other, which are as large as the kernel's.
    let ret = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            pages.as_mut_ptr(),
            0,
        )
    };
    assert_eq!(ret, 0, "cachestat: {}", io::Error::last_os_error());
    pages[1] + pages[2]
}

#[test]
fn what_is_flushed_is_on_the_disk() {
    // Not in a file system that lives in memory.
    let image = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(8 << 20).unwrap();
    let data = [(at(DATA), 64 * 4096, 0)];
    let mut was_unsafe = false;
    // Now and then the host is quicker to write pages than this is to look.
    for sector in (0..8000).step_by(800) {
        let mut rig = rig(Engine::Remap, image.path(), Writable, ALL);
        rig.put(at(DATA), &[sector as u8 | 1; 64 * 4096]);
        assert_eq!(request(&mut rig, OUT, sector, &data), (OK, 1));
        was_unsafe |= unsafe_pages(image.as_file()) > 0;
        assert_eq!(request(&mut rig, DO_FLUSH, 0, &[]), (OK, 1));
        assert_eq!(unsafe_pages(image.as_file()), 0, "after a flush");
        rig.finish();
    }
    assert!(was_unsafe, "nothing was ever to be flushed");

    // A driver that knows no flush takes what is written for safe.
    let mut rig = rig(Engine::Remap, image.path(), Writable, ALL & !FLUSH);
    rig.put(at(DATA), &[77; 64 * 4096]);
    assert_eq!(request(&mut rig, OUT, 80, &data), (OK, 1));
    assert_eq!(unsafe_pages(image.as_file()), 0, "after a write");
    rig.finish();
}
