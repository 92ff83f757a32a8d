//! Pages with plots about runs and sweeps: one HTML file each, with nothing to load and no scripts, readable on paper
//! and by colour-blind people.
//!
//! [`RunReport`] takes a run's events one by one, in bounded memory, from wherever they come; [`sweep_page`] takes the
//! rows of a sweep.

mod drawing;
mod run;
mod sweep;

pub use run::{RunMeta, RunReport};
pub use sweep::sweep_page;
