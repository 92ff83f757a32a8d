//! A client that is generated from the machine's own description of its API does a whole session.

mod python;

use std::path::Path;
use std::process::Command;

#[test]
fn a_generated_client_does_a_whole_session() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/api_session.py");
    let mut command = Command::new(python::python());
    command.arg(script).arg(env!("CARGO_BIN_EXE_hmmvisor"));
    python::output(command.arg(folder.path()));
}
