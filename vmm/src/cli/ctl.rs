//! `ctl`: asks a running machine, or has it do something.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use hmmvisor::size::Size;
use hmmvisor_api::{
    Answer, Balloon, Client, Device, Devices, Hint, Memory, Migrate, Migrated, Operation,
    Operations, Outcome, Pages, PausedCommands, Permission, Pin, Pins, Poison, Policy, Protect,
    Provocation, Provocations, Provoke, Record, Recording, Residency, SetBalloon, SetDevice,
    SetPolicy, Vm, VmState, WayPoint,
};
use hmmvisor_policies::PolicyChoice;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::failed::failed;
use super::output::print;

/// Options of `ctl`.
#[derive(Args)]
pub struct CtlArgs {
    /// The machine's socket: what its `--api` names
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    #[command(subcommand)]
    verb: Verb,
    /// Print the machine's answer as it is, in JSON
    #[arg(long = "json", id = "answer", global = true)]
    json: bool,
}

/// What is asked of a machine.
#[derive(Subcommand)]
enum Verb {
    /// Show the machine, and what it was started with
    Vm,
    /// End the run, in good order
    Stop,
    /// Press the power button of an operating system, which most of them answer by switching the machine off
    PowerButton,
    /// Pause the machine: vCPUs outside the guest, accelerators between two commands
    Pause {
        /// What becomes of the commands that accelerators are executing: finish, or halt where they are and go on afterwards
        #[arg(long, value_name = "finish|halt", value_parser = paused_commands, default_value = "finish")]
        commands: PausedCommands,
    },
    /// Have a paused machine go on
    Resume,
    /// Show the balloon; or ask the guest to give back this much memory
    Balloon {
        /// How much, like 64M
        #[arg(value_name = "SIZE")]
        size: Option<Size>,
    },
    /// Show how many pages are where
    Memory,
    /// Show where the pages of a range are
    Residency(Range),
    /// Move pages
    Migrate {
        #[command(flatten)]
        range: Range,
        /// Where to: system, or an accelerator like device0
        #[arg(value_name = "TO")]
        to: String,
    },
    /// Move pages to system memory
    Evict(Range),
    /// Make pages read-only, or writable again
    Protect {
        #[command(flatten)]
        range: Range,
        /// What may be done with them
        #[arg(value_name = "read-only|read-write", value_parser = permission)]
        permission: Permission,
    },
    /// Tell the policy something about pages
    Hint {
        #[command(flatten)]
        range: Range,
        /// What, like read-mostly or preferred:device0
        #[arg(value_name = "HINT")]
        hint: String,
    },
    /// Lose the contents of a page, as if the memory behind it had failed
    Poison {
        /// The page
        #[arg(value_name = "PAGE")]
        page: u32,
    },
    /// Bring pages to system memory and keep them there
    Pin(Range),
    /// List the pins
    Pins,
    /// End a pin
    Unpin {
        /// Its number
        #[arg(value_name = "PIN")]
        pin: u64,
    },
    /// Show what decides what migrates; or have another policy decide from now on
    Policy {
        /// The new policy, like `density:threshold=60+lru`; a script is named like `mine.luau:window=32+lru`, which is also its file
        /// unless --script is another one
        #[arg(value_name = "SPEC")]
        spec: Option<String>,
        /// The script's file
        #[arg(long, value_name = "FILE", requires = "spec")]
        script: Option<PathBuf>,
        /// It is to decide only about this many pages from this one on: whole blocks of 512
        #[arg(long, num_args = 2, value_names = ["FIRST", "PAGES"], requires = "spec")]
        region: Option<Vec<u32>>,
        /// Only find out whether it could decide
        #[arg(long, requires = "spec")]
        check: bool,
    },
    /// Show the accelerators
    Devices,
    /// Change the size of an accelerator's memory
    Resize {
        /// Its number
        #[arg(value_name = "DEVICE")]
        device: u8,
        /// The new size, like 8M; at most what `--device-memory-max` of the run says
        #[arg(value_name = "SIZE")]
        memory: Size,
    },
    /// List the requests that take long and are being carried out: migrations, detaches, changes of size
    Operations,
    /// Have such a request end early; what has moved stays where it is then
    Cancel {
        /// Its number, as `operations` lists it
        #[arg(value_name = "OPERATION")]
        operation: u64,
    },
    /// Detach an accelerator: all its pages move to system memory
    Detach {
        /// Its number
        #[arg(value_name = "DEVICE")]
        device: u8,
    },
    /// Have an accelerator's migrations fail or take longer; without more, show what is provoked
    Provoke {
        /// The accelerator's number
        #[arg(value_name = "DEVICE")]
        device: u8,
        /// Where: to-device-before-copy, to-device-copied, to-device-committed, flush, to-system-before-copy, to-system-copied or
        /// to-system-committed
        #[arg(value_name = "WAY-POINT", value_parser = way_point)]
        at: Option<WayPoint>,
        /// Take this many milliseconds longer instead of failing
        #[arg(long, value_name = "MS", requires = "at")]
        delay: Option<u64>,
        /// How often; without, until it is ended
        #[arg(long, value_name = "N", requires = "at")]
        times: Option<u64>,
        /// End all provocations of the accelerator
        #[arg(long, conflicts_with = "at")]
        end: bool,
    },
    /// Print the figures so far, as --json of `run` writes them at the end
    Stats,
    /// Print the figures in Prometheus's format
    Metrics,
    /// Print what happens, a line for each event, until interrupted
    Events {
        /// Kinds with commas between them, like cpu-fault,to-device; all without
        #[arg(long, value_name = "KINDS")]
        kinds: Option<String>,
        /// End after this many events
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Show the recording; or begin to record a trace
    Record {
        /// The trace's file, seen from the machine's process
        #[arg(value_name = "FILE")]
        file: Option<String>,
        /// End the recording, and wait until its file is complete
        #[arg(long, conflicts_with = "file")]
        end: bool,
    },
    /// Print the description of all resources (OpenAPI)
    Openapi,
}

/// What is shown of an answer.
type Show = fn(&[u8]) -> Result<String>;

impl Verb {
    /// Asks the machine.
    fn ask(self, client: &Client) -> Result<(Answer, Show)> {
        let none = None::<&()>;
        Ok(match self {
            Verb::Vm => (client.get("/v1/vm")?, vm),
            Verb::Stop => (client.post("/v1/vm/stop", none)?, nothing),
            Verb::PowerButton => (client.post("/v1/vm/power-button", none)?, nothing),
            Verb::Pause { commands } => {
                let path = format!("/v1/vm/pause?commands={}", named(&commands));
                (client.post(&path, none)?, vm)
            }
            Verb::Resume => (client.post("/v1/vm/resume", none)?, vm),
            Verb::Balloon { size: None } => (client.get("/v1/balloon")?, balloon),
            Verb::Balloon { size: Some(size) } => {
                let target_bytes = size.0;
                let body = SetBalloon { target_bytes };
                (client.put("/v1/balloon", &body)?, balloon)
            }
            Verb::Memory => (client.get("/v1/memory")?, memory),
            Verb::Residency(Range { first, pages }) => {
                let path = format!("/v1/memory/residency?first={first}&pages={pages}");
                (client.get(&path)?, residency)
            }
            Verb::Migrate { range, to } => migrate(client, range, to)?,
            Verb::Evict(range) => migrate(client, range, "system".to_owned())?,
            Verb::Protect { range, permission } => {
                let Range { first, pages } = range;
                let body = Protect {
                    first,
                    pages,
                    permission,
                };
                (client.post("/v1/memory/protect", Some(&body))?, nothing)
            }
            Verb::Hint { range, hint } => {
                let Range { first, pages } = range;
                let body = Hint { first, pages, hint };
                (client.post("/v1/memory/hint", Some(&body))?, nothing)
            }
            Verb::Poison { page } => {
                let body = Poison { page };
                (client.post("/v1/memory/poison", Some(&body))?, nothing)
            }
            Verb::Pin(Range { first, pages }) => {
                let body = Pages { first, pages };
                (client.post("/v1/memory/pins", Some(&body))?, pin)
            }
            Verb::Pins => (client.get("/v1/memory/pins")?, pins),
            Verb::Unpin { pin } => (client.delete(&format!("/v1/memory/pins/{pin}"))?, nothing),
            Verb::Policy { spec: None, .. } => (client.get("/v1/policy")?, policy),
            Verb::Policy {
                spec: Some(spec),
                script,
                region,
                check,
            } => {
                let body = SetPolicy {
                    script: text_of(&spec, script)?,
                    spec,
                    region: region.map(|it| Pages {
                        first: it[0],
                        pages: it[1],
                    }),
                };
                let answer = match check {
                    true => client.post("/v1/policy/check", Some(&body)),
                    false => client.put("/v1/policy", &body),
                };
                (answer?, policy)
            }
            Verb::Devices => (client.get("/v1/devices")?, devices),
            Verb::Resize { device, memory } => {
                let memory_bytes = memory.0;
                let path = format!("/v1/devices/{device}");
                (client.put(&path, &SetDevice { memory_bytes })?, device_line)
            }
            Verb::Operations => (client.get("/v1/operations")?, operations),
            Verb::Cancel { operation } => {
                let path = format!("/v1/operations/{operation}");
                (client.delete(&path)?, operation_line)
            }
            Verb::Detach { device } => {
                let path = format!("/v1/devices/{device}/detach");
                (client.post(&path, none)?, nothing)
            }
            Verb::Provoke {
                device,
                at,
                delay,
                times,
                end,
            } => {
                let path = format!("/v1/devices/{device}/provocations");
                match (at, end) {
                    (_, true) => (client.delete(&path)?, nothing),
                    (None, false) => (client.get(&path)?, provocations),
                    (Some(at), false) => {
                        let outcome = delay.map_or(Outcome::Fail, Outcome::DelayMs);
                        let body = Provoke { at, outcome, times };
                        (client.post(&path, Some(&body))?, provocations)
                    }
                }
            }
            Verb::Stats => (client.get("/v1/stats")?, as_it_is),
            Verb::Metrics => (client.get("/v1/metrics")?, as_it_is),
            Verb::Events { kinds, count } => return events(client, kinds, count),
            Verb::Record { end: true, .. } => (client.delete("/v1/recording")?, recording),
            Verb::Record { file: None, .. } => (client.get("/v1/recording")?, recording),
            Verb::Record {
                file: Some(path), ..
            } => (client.put("/v1/recording", &Record { path })?, recording),
            Verb::Openapi => (client.get("/v1/openapi.json")?, as_it_is),
        })
    }
}

fn migrate(client: &Client, range: Range, to: String) -> Result<(Answer, Show)> {
    let Range { first, pages } = range;
    let body = Migrate { first, pages, to };
    Ok((client.post("/v1/memory/migrate", Some(&body))?, migrated))
}

/// Prints events as they come.
fn events(client: &Client, kinds: Option<String>, count: Option<u64>) -> Result<(Answer, Show)> {
    let path = match kinds {
        Some(kinds) => format!("/v1/events?kinds={kinds}"),
        None => "/v1/events".to_owned(),
    };
    let mut left = count;
    let mut printed = Ok(());
    client.lines(&path, |line| {
        printed = print(&format!("{line}\n"));
        left = left.map(|left| left.saturating_sub(1));
        match printed.is_ok() && left != Some(0) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    printed?;
    let answer = Answer {
        content_type: String::new(),
        body: Vec::new(),
    };
    Ok((answer, nothing))
}

/// Returns the text of the script that a specification names, if it names one.
fn text_of(spec: &str, script: Option<PathBuf>) -> Result<Option<String>> {
    let named = || match spec.parse() {
        Ok(PolicyChoice::Script(script)) => Some(script.path),
        // What is wrong with it, the machine says.
        Ok(PolicyChoice::BuiltIn(_)) | Err(_) => None,
    };
    let Some(path) = script.or_else(named) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(failed(format!("reading script {}", path.display())))?;
    Ok(Some(text))
}

/// Parses a word that the API knows, as it writes it.
fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let value = serde_json::Value::from(text);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn permission(text: &str) -> Result<Permission, String> {
    word(text)
}

fn paused_commands(text: &str) -> Result<PausedCommands, String> {
    word(text)
}

fn way_point(text: &str) -> Result<WayPoint, String> {
    word(text)
}

/// Returns a word as the API writes it.
fn named(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// A range of pages.
#[derive(Args, Clone, Copy)]
struct Range {
    /// The first page, of 4 KiB, counted from the beginning of guest memory
    #[arg(value_name = "FIRST")]
    first: u32,
    /// The number of pages
    #[arg(value_name = "PAGES")]
    pages: u32,
}

/// Carries out `ctl`.
pub fn ctl(args: CtlArgs) -> Result<ExitCode> {
    let client = Client::new(args.socket);
    let (answer, show) = args.verb.ask(&client)?;
    let text = match args.json {
        true => as_it_is(&answer.body)?,
        false => show(&answer.body)?,
    };
    if !text.is_empty() {
        print(&format!("{}\n", text.trim_end()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(body)?)
}

fn nothing(_: &[u8]) -> Result<String> {
    Ok(String::new())
}

fn as_it_is(body: &[u8]) -> Result<String> {
    Ok(String::from_utf8_lossy(body).into_owned())
}

fn vm(body: &[u8]) -> Result<String> {
    let vm: Vm = parsed(body)?;
    let what = vm.workload.or(vm.guest).or(vm.kernel).unwrap_or_default();
    let state = match vm.state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Ended => "ended",
    };
    Ok(format!(
        "{what}, {state} for {:.1} s\n{} vCPUs, {} accelerators with {} MiB each, {} MiB of managed memory, engine {}, policy {}, seed {}",
        vm.uptime_s,
        vm.vcpus,
        vm.devices,
        vm.device_memory_bytes >> 20,
        vm.memory_bytes >> 20,
        vm.engine,
        vm.policy,
        vm.seed
    ))
}

fn memory(body: &[u8]) -> Result<String> {
    let memory: Memory = parsed(body)?;
    let mut text = String::new();
    for (what, pages) in [
        ("all", memory.pages),
        ("untouched", memory.untouched_pages),
        ("system memory", memory.system_pages),
        ("device memory", memory.device_pages),
        ("coherent memory", memory.coherent_pages),
        ("duplicated", memory.duplicated_pages),
        ("exclusive", memory.exclusive_pages),
        ("poisoned", memory.poisoned_pages),
        ("read-only", memory.read_only_pages),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{what:<16}{pages:>10} pages {:>9.1} MiB",
            pages as f64 / 256.0
        );
    }
    Ok(text)
}

fn residency(body: &[u8]) -> Result<String> {
    let residency: Residency = parsed(body)?;
    let mut text = String::new();
    for run in residency.runs {
        let place = named(&run.place);
        let device = run
            .device
            .map_or(String::new(), |device| format!(" {device}"));
        let read_only = if run.read_only { ", read-only" } else { "" };
        let (first, pages) = (run.first, run.pages);
        let _ = writeln!(
            text,
            "{first:>10} {pages:>10} pages  {place}{device}{read_only}"
        );
    }
    Ok(text)
}

fn migrated(body: &[u8]) -> Result<String> {
    let migrated: Migrated = parsed(body)?;
    Ok(format!("{} pages have moved", migrated.pages))
}

fn policy(body: &[u8]) -> Result<String> {
    let policy: Policy = parsed(body)?;
    Ok(policy.policy)
}

fn balloon(body: &[u8]) -> Result<String> {
    let balloon: Balloon = parsed(body)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(format!(
        "{:.1} MiB given back of {:.1} MiB",
        mib(balloon.actual_bytes),
        mib(balloon.target_bytes)
    ))
}

fn one_pin(pin: &Pin) -> String {
    format!("pin {}: {} pages from {}", pin.pin, pin.pages, pin.first)
}

fn pin(body: &[u8]) -> Result<String> {
    Ok(one_pin(&parsed(body)?))
}

fn pins(body: &[u8]) -> Result<String> {
    let pins: Pins = parsed(body)?;
    let lines: Vec<_> = pins.pins.iter().map(one_pin).collect();
    Ok(lines.join("\n"))
}

fn one_device(it: &Device) -> String {
    let state = if it.attached { "attached" } else { "detached" };
    format!(
        "device{}  {state}  {} of {} pages, {} commands ({} failed), {} faults",
        it.device, it.used_pages, it.capacity_pages, it.commands, it.errors, it.faults
    )
}

fn device_line(body: &[u8]) -> Result<String> {
    Ok(one_device(&parsed(body)?))
}

fn devices(body: &[u8]) -> Result<String> {
    let devices: Devices = parsed(body)?;
    let lines: Vec<_> = devices.devices.iter().map(one_device).collect();
    Ok(lines.join("\n"))
}

fn one_operation(it: &Operation) -> String {
    let device = it
        .device
        .map_or(String::new(), |device| format!(" device{device}"));
    let cancelled = if it.cancelled { ", cancelled" } else { "" };
    format!(
        "operation {}: {}{device}, {} of {} pages{cancelled}",
        it.operation,
        named(&it.doing),
        it.done_pages,
        it.total_pages
    )
}

fn operation_line(body: &[u8]) -> Result<String> {
    Ok(one_operation(&parsed(body)?))
}

fn operations(body: &[u8]) -> Result<String> {
    let operations: Operations = parsed(body)?;
    let lines: Vec<_> = operations.operations.iter().map(one_operation).collect();
    Ok(lines.join("\n"))
}

fn provocations(body: &[u8]) -> Result<String> {
    let provocations: Provocations = parsed(body)?;
    let line = |it: &Provocation| {
        let outcome = match it.outcome {
            Outcome::Fail => "fails".to_owned(),
            Outcome::DelayMs(ms) => format!("takes {ms} ms longer"),
        };
        let left = match it.left {
            Some(left) => format!("{left} times more"),
            None => "until ended".to_owned(),
        };
        format!(
            "{}: {outcome}, {left}; {} times so far",
            named(&it.at),
            it.happened
        )
    };
    let lines: Vec<_> = provocations.provocations.iter().map(line).collect();
    Ok(lines.join("\n"))
}

fn recording(body: &[u8]) -> Result<String> {
    let it: Recording = parsed(body)?;
    let path = it.path.unwrap_or_default();
    Ok(match (it.active, path.is_empty(), it.error) {
        (true, ..) => format!("recording into {path}"),
        (false, true, _) => "nothing has been recorded".to_owned(),
        (false, false, Some(error)) => format!("{path} is not whole: {error}"),
        (false, false, None) => format!(
            "{path} has {} events in {} bytes, {} were dropped",
            it.events, it.bytes, it.dropped
        ),
    })
}
