//! Configuration: the file's text, and the command line. Anything may be an error, nothing may panic.

use clap::Parser;
use hmmvisor::Config;
use hmmvisor::host::Host;
use hmmvisor_guest_images::find;

use crate::cli::run::RunArgs;

/// The command line of `run`, which may be left out.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

/// The first byte says which: text of a file, or arguments, one a line.
pub fn run(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    if kind % 2 == 0 {
        match toml::from_str::<Config>(&text) {
            Ok(config) => check(config),
            Err(error) => drop(error.to_string()),
        }
    } else {
        arguments(&text);
    }
}

fn arguments(text: &str) {
    let options = text.strip_prefix("run\n").unwrap_or(text).lines();
    let args = match Cli::try_parse_from(["hmmvisor"].into_iter().chain(options)) {
        Ok(cli) => cli.run,
        Err(error) => return drop(error.to_string()),
    };
    // No file but what lies in this folder may be read: others could be devices that never end.
    if text.contains('/') {
        return;
    }
    match args.config() {
        Ok(config) => check(config),
        Err(error) => drop(format!("{error:#}")),
    }
}

fn check(mut config: Config) {
    let host = Host {
        memory: 8 << 30,
        cpus: vec![0, 1],
        groups: Vec::new(),
        address_space: None,
    };
    // Whether a folder is there is the file system's business.
    config.json = config.json.filter(|path| path.as_os_str() == "-");
    config.record = None;
    let checked = config.check(&host);
    drop(checked.as_ref().map_err(ToString::to_string));
    let workload = find(config.workload.name.as_deref().unwrap_or("vecadd"));
    match workload.and_then(|workload| workload.cmdline(&config.workload.params)) {
        Ok(line) if checked.is_ok() => {
            // What has been checked must not add words to the guest's command line or end a word early.
            let words = line.split_whitespace().count();
            assert!(words <= 1 + 64 && !line.contains('\n'), "{line:?}");
        }
        Ok(_) => {}
        Err(error) => drop(error.to_string()),
    }
}
