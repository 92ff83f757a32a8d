//! Migration policies as Luau scripts, sandboxed and bounded.
//!
//! [`PolicyChoice`] is what a user names: built-in policies or a script. [`Scripts`] is a script as a
//! [`PolicyFactory`](hmm_backend::policy::PolicyFactory): each backend has an interpreter of its own, which the policies of all
//! shards of guest memory and of all devices ask in turns. A script that fails is replaced by density, event by event and
//! finally until it is reloaded; the guest never notices. `docs/policy-scripts.md` is the reference for people who
//! write scripts.
//!
//! | module | what |
//! |---|---|
//! | `choice`, `spec` | what a user names, parsed |
//! | `scripts`, `watch` | the file: loaded, reloaded when it has changed, counted |
//! | `policy`, `eviction` | a script in the place of the backend's policies |
//! | `script` | one instance: its text, its calls, and what they return |
//! | `sandbox` | what it runs in, what it is given, and what that may cost |
//! | `examples` | the scripts of the repository, for lists |

mod choice;
mod error;
mod eviction;
mod examples;
mod policy;
mod sandbox;
mod script;
mod scripts;
mod spec;
mod watch;

pub use choice::{Chosen, NamedFile, PolicyChoice};
pub use error::ScriptError;
pub use examples::{EXAMPLES, Example};
pub use sandbox::limits::Limits;
pub use script::instance::Log;
pub use script::text::excerpt;
pub use scripts::{ScriptFigures, Scripts};
pub use spec::ScriptSpec;
pub use watch::FileWatch;
