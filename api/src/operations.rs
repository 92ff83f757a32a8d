//! Requests that take long, while they are carried out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It migrates pages.
    Migrate,
    /// It detaches an accelerator.
    Detach,
    /// It changes the size of an accelerator's memory.
    Resize,
}

/// A request that is being carried out. It ends with the answer to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its number.
    pub operation: u64,
    /// What it does.
    pub doing: Doing,
    /// The accelerator that it is about: for migrations, the one that pages go to; none if they go to system memory.
    pub device: Option<u8>,
    /// Pages that it has looked at, or moved out of an accelerator's memory.
    pub done_pages: u32,
    /// Pages that it has to look at, or to move out.
    pub total_pages: u32,
    /// Whether it has been cancelled, and ends with the blocks that it is at.
    pub cancelled: bool,
}

/// All operations in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operations {
    /// In the order in which they began.
    pub operations: Vec<Operation>,
}
