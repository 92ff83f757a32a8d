//! Migration policies as Luau scripts, sandboxed and bounded.
//!
//! [`PolicyChoice`] is what a user names: built-in policies or a script. [`Scripts`] is a script as a
//! [`PolicyFactory`](hmm_backend::policy::PolicyFactory): each backend has an interpreter of its own, which the policies of all
//! shards of guest memory and of all devices ask in turns. A script that fails is replaced by the default policy, event by event and
//! finally until it is reloaded; the guest never notices. `docs/policy-scripts.md` is the reference for people who
//! write scripts.
//!
//! | module | what |
//! |---|---|
//! | `choice` | what a user names, parsed |
//! | `scripts` | the file: loaded, reloaded, counted |
//! | `policy`, `eviction` | a script in the place of the backend's policies |
//! | `regions` | different policies for parts of guest memory |
//! | `script`, `calls`, `results`, `answer` | one instance: calls, and what they return |
//! | `candidates` | folios to choose victims from, on their way to a script |
//! | `sandbox`, `library`, `budget`, `limits`, `page_sets` | what it runs in, and what that may cost |
//! | `examples` | the scripts of the repository, for lists |
//! | `text` | its text, and what is shown of what it says |
//! | `watch` | notices that the file has changed |

mod answer;
mod budget;
mod calls;
mod candidates;
mod choice;
mod error;
mod eviction;
mod examples;
mod instance;
mod library;
mod limits;
mod page_sets;
mod policy;
mod regions;
mod results;
mod sandbox;
mod script;
mod scripts;
mod spec;
mod text;
mod watch;

pub use choice::{Chosen, NamedFile, PolicyChoice};
pub use error::ScriptError;
pub use examples::{EXAMPLES, Example};
pub use instance::Log;
pub use limits::Limits;
pub use regions::{PART, Region, Regions};
pub use scripts::{ScriptFigures, Scripts};
pub use spec::ScriptSpec;
pub use text::excerpt;
pub use watch::FileWatch;
