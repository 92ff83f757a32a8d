//! Pages with plots about runs and sweeps: one HTML file each, with nothing to load and no scripts, readable on paper
//! and by colour-blind people.
//!
//! [`RunReport`] takes a run's events one by one, in bounded memory, from wherever they come; [`sweep_page`] takes the
//! rows of a sweep.

mod activity;
mod axis;
mod comparison;
mod latency;
mod legend;
mod page;
mod pareto;
mod residency;
mod results;
mod room;
mod run;
mod statistics;
mod style;
mod svg;
mod sweep;
mod thrashing;
mod timeline;

pub use run::{RunMeta, RunReport};
pub use sweep::sweep_page;
