//! The machine as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hmmvisor_api::{Balloon, Pause, Problem, SetBalloon, Vm};

use super::{Answer, BodyRefused, Machine, apart};
use crate::api::error::Refusal;
use crate::api::extract::{Asked, Body};

/// The machine, and what it was started with
#[utoipa::path(
    get, path = "/v1/vm", tag = "vm",
    responses(
        (status = 200, body = Vm)
    )
)]
pub(super) async fn vm(State(live): Machine) -> Json<Vm> {
    Json(live.vm())
}

/// End the run
///
/// The machine stops in good order, the process reports and exits with 0.
#[utoipa::path(
    post, path = "/v1/vm/stop", tag = "vm",
    responses(
        (status = 204)
    )
)]
pub(super) async fn stop(State(live): Machine) -> StatusCode {
    live.stop();
    StatusCode::NO_CONTENT
}

/// Press the guest's power button
///
/// An operating system is told by ACPI, and does what it does about it: most switch themselves off, which ends the run. The answer
/// comes at once. Small guests have no button.
#[utoipa::path(
    post, path = "/v1/vm/power-button", tag = "vm",
    responses(
        (status = 204),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn power_button(State(live): Machine) -> Result<StatusCode, Refusal> {
    live.press_power_button()?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pause the machine
///
/// The answer comes when no vCPU is in the guest and each accelerator has halted. Requests are served as before, migrations
/// included. Pausing a paused machine changes nothing.
#[utoipa::path(
    post, path = "/v1/vm/pause", tag = "vm", params(Pause),
    responses(
        (status = 200, body = Vm),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn pause(State(live): Machine, Asked(how): Asked<Pause>) -> Answer<Vm> {
    apart(live, move |live| live.pause(how)).await.map(Json)
}

/// Have a paused machine go on
///
/// The guest's clocks have gone on meanwhile, as the host's have.
#[utoipa::path(
    post, path = "/v1/vm/resume", tag = "vm",
    responses(
        (status = 200, body = Vm)
    )
)]
pub(super) async fn resume(State(live): Machine) -> Json<Vm> {
    Json(live.resume())
}

/// The balloon
#[utoipa::path(
    get, path = "/v1/balloon", tag = "vm",
    responses(
        (status = 200, body = Balloon),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn balloon(State(live): Machine) -> Answer<Balloon> {
    live.balloon().map(Json)
}

/// Ask the guest to give memory back, or to take it again
#[utoipa::path(
    put, path = "/v1/balloon", tag = "vm", request_body = SetBalloon,
    responses(
        (status = 200, body = Balloon),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn set_balloon(
    State(live): Machine,
    Body(to): Body<SetBalloon>,
) -> Answer<Balloon> {
    apart(live, move |live| live.set_balloon(to))
        .await
        .map(Json)
}
