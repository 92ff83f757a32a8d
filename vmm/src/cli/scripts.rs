//! What commands say about policy scripts.

use hmmvisor_policies::ScriptFigures;

/// Why the figures of a replay or a run are not those of its script; None if they are.
pub fn script_failure(figures: &ScriptFigures) -> Option<String> {
    if !figures.failed() {
        return None;
    }
    let ScriptFigures {
        decisions,
        failures,
        off,
        ..
    } = *figures;
    let given_up = match off {
        0 => "",
        _ => " and was given up",
    };
    Some(format!(
        "the policy script failed in {failures} of the {} events that it was asked about{given_up}; the default policy decided in its place",
        failures.saturating_add(decisions)
    ))
}
