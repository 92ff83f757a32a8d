//! Trace files: any bytes are read up to the first mistake, exported and replayed up to there.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hmm_backend::policy::{LinkMatrix, PolicySpec};
use hmmvisor_experiments::output::Files;
use hmmvisor_experiments::replay::{FileReplay, FileReplayError};
use hmmvisor_experiments::report::{RunMeta, RunReport};
use hmmvisor_experiments::trace::export::{Format, export};
use hmmvisor_experiments::trace::{TraceInfo, TraceReader};

/// Bytes of the file's header and of a block's.
const HEADER: usize = 20;
/// Traces that say they are of more memory are only read: what is to be found does not need much, and books take time.
const MEMORY: u64 = 64 << 20;
/// Pages in all events together, for the same reason.
const PAGES: u64 = 1 << 20;

/// The first byte says what the others are: a file, or a file that is still to be sealed.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    let sealed = match first % 2 {
        0 => bytes.to_vec(),
        _ => seal(bytes),
    };
    let folder = tempfile::tempdir().expect("there is a place for temporary files");
    let path = folder.path().join("trace");
    fs::write(&path, sealed).expect("there is room");
    check(&path);
}

fn check(path: &Path) {
    let Ok(reader) = TraceReader::open(path) else {
        return;
    };
    let meta = reader.meta().clone();
    let dropped = reader.totals().dropped_events();
    let (mut count, mut pages) = (0, 0);
    let mut report = RunReport::new(RunMeta {
        title: "A trace".to_owned(),
        memory: meta.memory.min(MEMORY),
        base: 0,
        device_memory: vec![meta.device_memory; meta.devices.min(64) as usize],
        policy: meta.policy.clone(),
        facts: Vec::new(),
        dropped,
    });
    let mut error = None;
    for event in reader {
        match event {
            Ok(event) => {
                count += 1;
                pages += u64::from(event.pages);
                report.add(&event);
            }
            Err(found) => error = Some(found),
        }
    }
    assert!(report.finish().contains("</html>"));

    let open = || TraceReader::open(path).expect("it was opened before");
    for format in [Format::Csv, Format::Perfetto] {
        let nowhere = Files::default().whole("the events", Path::new("/dev/null"));
        let nowhere = nowhere.expect("it is always there");
        match (export(open(), format, nowhere), &error) {
            (Ok(events), None) => assert_eq!(events, count),
            (Err(_), Some(_)) => {}
            other => panic!("export and reader disagree: {other:?}"),
        }
    }
    if pages > PAGES {
        return;
    }
    if meta.memory <= MEMORY && meta.memory > 0 {
        let (info, found) = TraceInfo::read(open());
        assert_eq!(found.is_some(), error.is_some());
        assert_eq!(info.totals.events, count);
        let _ = info.to_string();
    }
    let policy = "density+thrash+hints+lru".parse::<PolicySpec>();
    let replay = FileReplay {
        fidelity: hmm_backend::pages::Fidelity::default(),
        eviction_batch: hmm_backend::EVICTION_BATCH,
        policy: Arc::new(policy.expect("it is one")),
        device_memory: meta.device_memory.min(MEMORY),
        links: LinkMatrix::default(),
        optimal: true,
    };
    if meta.memory <= MEMORY || meta.memory > 1 << 43 {
        match (replay.run(open()), &error) {
            (Err(FileReplayError::Trace(_)), None) | (Ok(_), Some(_)) => {
                panic!("replay and reader disagree: {error:?}")
            }
            _ => {}
        }
    }
}

/// Makes a file of bytes that are one but for its checksums and its payloads, which are not compressed: otherwise the
/// fuzzer would not get past them.
fn seal(bytes: &[u8]) -> Vec<u8> {
    let u32_at = |bytes: &[u8], at: usize| {
        let number = bytes[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(number) as usize
    };
    let mut file = bytes.get(..HEADER).unwrap_or(bytes).to_vec();
    let Some(rest) = bytes.get(HEADER..) else {
        return file;
    };
    let (meta, mut rest) = rest.split_at(u32_at(bytes, 12).min(rest.len()));
    file[12..16].copy_from_slice(&(meta.len() as u32).to_le_bytes());
    file[16..20].copy_from_slice(&crc32fast::hash(meta).to_le_bytes());
    file.extend(meta);
    while rest.len() >= HEADER {
        let (header, behind) = rest.split_at(HEADER);
        let (payload, behind) = behind.split_at(u32_at(header, 12).min(behind.len()));
        let stored = zstd::bulk::compress(payload, 1).expect("it is small");
        let mut header = header.to_vec();
        header[8..12].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc = crc32fast::hash(&[&header[..16], &stored].concat());
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        file.extend(header);
        file.extend(stored);
        rest = behind;
    }
    file.extend(rest);
    file
}
