//! Placement from a file, which says which pages belong in system memory and which on the device.

use std::sync::Arc;
use std::time::Duration;

use crate::pages::{Page, PageRange, Place};
use crate::policy::{Advice, BlockFault, BlockView, FaultPolicy, PolicyFile, policy_checksum};

/// Maximum size of a placement file in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// An error in a placement file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(String),
    /// A line has a mistake.
    #[error("line {line}: {why}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The mistake.
        why: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    System,
    Device,
}

/// The contents of a placement file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::policy) struct Placement {
    file: PolicyFile,
    checksum: String,
    /// The ranges in ascending order; they do not overlap.
    ranges: Vec<(PageRange, Side)>,
}

impl Placement {
    /// Reads and parses a placement file.
    pub(in crate::policy) fn read(file: &str) -> Result<Placement, PlacementError> {
        let failed = |error: std::io::Error| PlacementError::Read(error.to_string());
        let (named, bytes) = PolicyFile::read(file.as_ref(), FILE_LIMIT).map_err(failed)?;
        if bytes.len() as u64 > FILE_LIMIT {
            let why = format!("it is larger than {} MiB", FILE_LIMIT >> 20);
            return Err(PlacementError::Read(why));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| PlacementError::Read("it is not UTF-8 text".into()))?;
        Placement::parse(named, &text)
    }

    fn parse(file: PolicyFile, text: &str) -> Result<Placement, PlacementError> {
        let mut lines: Vec<(PageRange, Side, usize)> = Vec::new();
        for (i, text) in text.lines().enumerate() {
            let line = i + 1;
            let text = text.split('#').next().unwrap_or_default().trim();
            if !text.is_empty() {
                let (range, side) =
                    parse_line(text).map_err(|why| PlacementError::Line { line, why })?;
                lines.push((range, side, line));
            }
        }
        lines.sort_by_key(|(range, ..)| range.start);
        for pair in lines.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            if first.0.overlap(second.0) > 0 {
                let (earlier, line) = (first.2.min(second.2), first.2.max(second.2));
                return Err(PlacementError::Line {
                    line,
                    why: format!("has pages that line {earlier} has placed already"),
                });
            }
        }
        Ok(Placement {
            file,
            checksum: policy_checksum(text),
            ranges: lines
                .into_iter()
                .map(|(range, side, _)| (range, side))
                .collect(),
        })
    }

    pub(in crate::policy) fn file(&self) -> &PolicyFile {
        &self.file
    }

    /// The checksum of the file's text.
    pub(in crate::policy) fn checksum(&self) -> &str {
        &self.checksum
    }

    fn side(&self, page: Page) -> Option<Side> {
        let at = self.ranges.partition_point(|(range, _)| range.end <= page);
        let (range, side) = self.ranges.get(at)?;
        range.contains(page).then_some(*side)
    }
}

fn parse_line(text: &str) -> Result<(PageRange, Side), String> {
    let words: Vec<_> = text.split_whitespace().collect();
    let [start, end, side] = words[..] else {
        return Err(format!(
            "'{text}' is not of the form: start-page end-page system|device"
        ));
    };
    let page = |word: &str| {
        let number = word.parse::<u32>();
        number
            .map(Page)
            .map_err(|_| format!("'{word}' is not the number of a page"))
    };
    let (start, end) = (page(start)?, page(end)?);
    if start >= end {
        return Err(format!(
            "the range from page {} to {} is empty; the end is not included",
            start.0, end.0
        ));
    }
    let side = match side {
        "system" => Side::System,
        "device" => Side::Device,
        other => return Err(format!("'{other}' is neither system nor device")),
    };
    Ok((PageRange::new(start, end), side))
}

/// The static policy. Devices access pages that belong in system memory in place. Pages that belong on the device
/// migrate there and are held for a time. All other pages move on demand.
#[derive(Debug)]
pub struct Static {
    placement: Arc<Placement>,
    hold: Duration,
}

impl Static {
    pub(in crate::policy) fn new(placement: Arc<Placement>, hold: Duration) -> Static {
        Static { placement, hold }
    }
}

impl FaultPolicy for Static {
    fn advise(&mut self, fault: &BlockFault, _: &BlockView<'_>) -> Advice {
        let Place::Device(_) = fault.to else {
            return Advice::default();
        };
        let all = |side| {
            let mut pages = fault.pages.iter().map(|i| fault.block.page(i));
            pages.all(|page| self.placement.side(page) == Some(side))
        };
        Advice {
            stay: all(Side::System),
            hold: match all(Side::Device) {
                true => self.hold,
                false => Duration::ZERO,
            },
            ..Advice::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{DeviceId, PageSet};
    use crate::policy::test_view::*;

    fn named() -> PolicyFile {
        PolicyFile {
            path: "p".into(),
            sha256: String::new(),
        }
    }

    #[test]
    fn pages_go_where_the_file_says() {
        let text = "# placement\n\n20 30 device # hot\n 0 10 system\n";
        let placement = Placement::parse(named(), text).unwrap();
        let hold = Duration::from_millis(2);
        let mut policy = Static::new(Arc::new(placement), hold);
        let words = block(64, &PageSet::from_range(0..64), &PageSet::EMPTY);
        let device = Place::Device(DeviceId(0));
        let none = Duration::ZERO;
        for (page, to, stay, held) in [
            (0, device, true, none),
            (9, device, true, none),
            (10, device, false, none),
            (19, device, false, none),
            (20, device, false, hold),
            (29, device, false, hold),
            (30, device, false, none),
            (0, Place::System, false, none),
            (20, Place::System, false, none),
        ] {
            let advice = policy.advise(&fault([page], to), &view(&words));
            assert_eq!((advice.stay, advice.hold), (stay, held), "page {page}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, message) in [
            (
                "0 1",
                "line 1: '0 1' is not of the form: start-page end-page system|device",
            ),
            ("\n0 x device", "line 2: 'x' is not the number of a page"),
            ("-1 5 device", "line 1: '-1' is not the number of a page"),
            (
                "0 4294967296 device",
                "line 1: '4294967296' is not the number of a page",
            ),
            (
                "5 5 system",
                "line 1: the range from page 5 to 5 is empty; the end is not included",
            ),
            ("0 5 gpu", "line 1: 'gpu' is neither system nor device"),
            (
                "4 8 device\n0 5 system",
                "line 2: has pages that line 1 has placed already",
            ),
        ] {
            let error = Placement::parse(named(), text).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
