//! `hmmvisor report`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use hmmvisor_experiments::report::sweep_page;

/// Options of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// A trace file, or the folder of a sweep
    #[arg(value_name = "RUN|SWEEP")]
    about: PathBuf,
    /// Where the page goes
    #[arg(short, value_name = "FILE.html")]
    out: PathBuf,
}

/// Does what the arguments say.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let html = match is_sweep(&args.about) {
        true => sweep_page(&args.about)?,
        false => run_page(&args.about)?,
    };
    fs::write(&args.out, html).with_context(|| format!("writing report {}", args.out.display()))?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Folders are sweeps, and so are journals.
fn is_sweep(path: &Path) -> bool {
    path.is_dir()
        || path
            .extension()
            .is_some_and(|extension| extension == "jsonl")
}

fn run_page(path: &Path) -> Result<String> {
    // Says first what is wrong with the file itself, if anything.
    fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    bail!(
        "{}: this version of Hmmvisor cannot read traces",
        path.display()
    )
}
