//! The policies of a run: loaded, and their scripts reloaded when their files change or SIGHUP comes.

use std::io::{self, Write};
use std::sync::Arc;

use hmm_backend::{Page, PolicyFactory};
use hmmvisor_policies::{
    FileWatch, Limits, Log, Region, Regions, ScriptError, ScriptFigures, Scripts,
};

use crate::config::PolicyConfig;

/// What decides in a run.
pub(crate) struct Policies {
    pub(crate) factory: Arc<dyn PolicyFactory>,
    pub(crate) scripts: Vec<Script>,
}

/// A script, and a watch on its file if that is possible.
pub(crate) struct Script {
    pub(crate) scripts: Arc<Scripts>,
    pub(crate) watch: Option<FileWatch>,
}

impl Policies {
    /// Loads what the configuration names.
    pub(crate) fn load(config: &PolicyConfig) -> Result<Policies, ScriptError> {
        let log: Log = Arc::new(|line| {
            let _ = writeln!(io::stderr(), "hmmvisor: policy script {line}");
        });
        let common = config.spec.load(Limits::default(), log.clone())?;
        let (mut factory, mut scripts) = (common.factory, common.scripts);
        if !config.region.is_empty() {
            let mut regions = Vec::new();
            for region in &config.region {
                let chosen = region.spec.load(Limits::default(), log.clone())?;
                scripts.extend(chosen.scripts);
                let blocks = |size: u64| (size / (2 << 20)) as u32;
                regions.push(Region {
                    first: Page(blocks(region.start.0) * 512).block(),
                    blocks: blocks(region.size.0),
                    policy: chosen.factory,
                });
            }
            factory = Arc::new(Regions {
                common: factory,
                regions,
            });
        }
        let watched = |scripts: Arc<Scripts>| Script {
            watch: FileWatch::new(scripts.path())
                .inspect_err(|error| {
                    let name = scripts.path().display();
                    log(&format!(
                        "{name}: changes will not be noticed, only SIGHUP: {error}"
                    ));
                })
                .ok(),
            scripts,
        };
        Ok(Policies {
            factory,
            scripts: scripts.into_iter().map(watched).collect(),
        })
    }

    /// How the scripts have been doing, together; none if there are none.
    pub(crate) fn figures(&self) -> Option<ScriptFigures> {
        let figures = self.scripts.iter().map(|script| script.scripts.figures());
        figures.reduce(|a, b| ScriptFigures {
            decisions: a.decisions + b.decisions,
            failures: a.failures + b.failures,
            reloads: a.reloads + b.reloads,
            off: a.off + b.off,
        })
    }
}
