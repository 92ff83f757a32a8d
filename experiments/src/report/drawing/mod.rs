//! What pages and their plots are drawn with.

pub(crate) mod axis;
pub(crate) mod legend;
pub(crate) mod page;
pub(crate) mod style;
pub(crate) mod svg;
