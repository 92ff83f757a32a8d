//! What decides what migrates.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::memory::Pages;

/// What decides now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// The specification, and those of regions with the memory that they are for.
    pub policy: String,
    /// The same with every parameter, and the checksums of the files that it was read from.
    pub exact: String,
}

/// Has another policy decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPolicy {
    /// A specification, like `density:threshold=60+lru`. With the text of a script, it names that, like
    /// `mine.luau:window=32+lru`; no file of this name is read.
    pub spec: String,
    /// The text of a Luau script, at most 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The pages that it is to decide about: whole blocks of 512. Without, it decides about all, and the policies of
    /// regions end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Pages>,
}
