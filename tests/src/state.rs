//! The state of everything, for tests that fail.

use std::collections::BTreeMap;
use std::fmt;

use hmm_backend::pages::{Page, PageRange};
use hmm_backend::residency::{Placed, Residency};

use crate::{TestVm, Vcpu};

impl TestVm {
    /// The test fails: something takes too long.
    pub(crate) fn give_up(&self, what: &str) -> ! {
        panic!("{what} within {:?}\n{self:?}", self.patience())
    }

    pub(crate) fn describe_page(&self, page: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backend.word(Page(page)) {
            Ok(word) => write!(f, "{:?}", word.residency())?,
            Err(error) => write!(f, "{error}")?,
        }
        if self.backend.in_motion(Page(page)).unwrap_or(false) {
            write!(f, ", in motion")?;
        }
        for (index, slot) in self.devices.iter().enumerate() {
            if slot.injector.holds(Page(page)) {
                write!(f, ", held at a gate of device {index}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TestVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "machine: engine {}, policy {}, {} pages, end {:?}",
            self.backend.engine(),
            self.backend.policy_name(),
            self.pages,
            self.ended()
        )?;
        for index in 0..self.desks.len() as u32 {
            writeln!(f, "{:?}", Vcpu { vm: self, index })?;
        }
        for (index, slot) in self.devices.iter().enumerate() {
            writeln!(f, "device {index}: {:?}", slot.injector)?;
        }
        let mut places: BTreeMap<String, Vec<PageRange>> = BTreeMap::new();
        for page in (0..self.pages).map(Page) {
            let place = match self.word(page).residency() {
                Residency::Device(Placed { device, .. }) => format!("{device:?}"),
                Residency::Coherent(Placed { device, .. }) => format!("{device:?}, coherent"),
                Residency::Duplicated(Placed { device, .. }) => format!("{device:?}, duplicated"),
                other => format!("{other:?}"),
            };
            let ranges = places.entry(place).or_default();
            match ranges.last_mut() {
                Some(last) if last.end == page => last.end = page.plus(1),
                _ => ranges.push(PageRange::single(page)),
            }
        }
        for (place, ranges) in places {
            writeln!(f, "{place}: {ranges:?}")?;
        }
        writeln!(f, "{:#?}", self.stats())?;
        if let Some(figures) = self.script() {
            writeln!(f, "policy's script: {figures:?}")?;
        }
        write!(f, "the guest says: {:?}", self.output.text())
    }
}
