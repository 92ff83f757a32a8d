//! The sweeps in `experiments/`: what they name exists.

use super::*;

use hmm_backend::policy::PolicySpec;

struct Names;

impl Runner for Names {
    fn policy(&self, spec: &str) -> Result<String, String> {
        let spec = spec.parse::<PolicySpec>();
        spec.map(|spec| spec.to_string())
            .map_err(|error| error.to_string())
    }
    fn workload(&self, _: &Source) -> Result<(), String> {
        Ok(())
    }
    fn trace(&self, path: &Path) -> Result<TraceFacts, String> {
        Err(format!(
            "{}: these sweeps make their traces",
            path.display()
        ))
    }
    fn run(&self, _: &SweepRun) -> Result<Measured, String> {
        Ok(Measured::default())
    }
}

#[test]
fn ready_sweeps_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(folder.join("../docs/experiments.md")).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".toml") || name == "Cargo.toml" {
            continue;
        }
        files += 1;
        let sweep = Sweep::read(&path, &Names).unwrap_or_else(|error| panic!("{error}"));
        assert!(!sweep.question.is_empty(), "{name} asks nothing");
        let command = format!("hmmvisor sweep experiments/{name} ");
        assert!(
            document.contains(&command),
            "docs/experiments.md: no `{command}`"
        );
    }
    assert_eq!(files, 5);
}
