//! The API of real machines, asked by the shared client, by sockets and by the command `ctl`.

mod ctl;
mod devices;
mod events;
mod figures;
#[path = "../live/mod.rs"]
mod live;
mod policies;
mod refusals;
mod sockets;
mod steering;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_backend::observe as backend;
use hmm_backend::policy::PolicySpec;
use hmmvisor_api::{
    Byte, ClientError, Device, Devices, Doing, Event, Memory, Operation, Operations, Outcome,
    Pages, Pins, Policy, Problem, Provocations, Provoke, Record, Recording, Residency, SetDevice,
    SetPolicy, Vm, VmState, WayPoint, Where,
};
use hmmvisor_experiments::replay::{Costs, ReplayConfig, Time, replay};
use hmmvisor_experiments::trace::{Tail, TraceReader};
use serde_json::{Value, json};

use live::{Machine, PATIENCE, PINGPONG, hmmvisor, wait_until};
