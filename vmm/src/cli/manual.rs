//! `hmmvisor completions` and `hmmvisor man`: both are made from the definition of the command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;

use super::mistake::Mistake;
use super::output::print;

const PROGRAM: &str = "hmmvisor";

/// Options of `completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the shell's script for the program's command line.
    pub fn print(self, mut program: Command) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, PROGRAM, &mut script);
        print(&String::from_utf8(script)?).map(|()| ExitCode::SUCCESS)
    }
}

/// Options of `man`.
#[derive(Args)]
pub struct ManArgs {
    /// The command, like `run` or `trace import`
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl ManArgs {
    /// Prints the page in the format of man(7), of the program or of one of its commands.
    pub fn print(self, program: Command) -> Result<ExitCode> {
        let mut command = program;
        // Gives each subcommand the whole of its name, as in `hmmvisor trace import`.
        command.build();
        for name in &self.command {
            let found = command.find_subcommand(name).cloned();
            command = found.ok_or_else(|| {
                let command = self.command.join(" ");
                Mistake(format!("there is no command `{command}`"))
            })?;
        }
        let title = command.get_bin_name().unwrap_or(PROGRAM).replace(' ', "-");
        let mut page = Vec::new();
        let source = format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
        let manual = clap_mangen::Man::new(command.display_name(title));
        manual.source(source).render(&mut page)?;
        print(&String::from_utf8(page)?).map(|()| ExitCode::SUCCESS)
    }
}
