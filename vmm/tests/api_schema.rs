//! A short round of `tests/proof/api`: whatever the API's description allows and forbids, asked of machines at work.

mod python;

use std::path::Path;
use std::process::Command;

#[test]
fn schemathesis_finds_nothing_wrong() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/proof/api");
    let mut command = Command::new(python::python());
    command
        .arg(script)
        .args(["--requests", "1", "--seconds", "30"]);
    command.arg("--binary").arg(env!("CARGO_BIN_EXE_hmmvisor"));
    python::output(&mut command);
}
