//! The accelerators, and provoking their drivers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hmmvisor_api::{Device, Devices, Problem, Provocations, Provoke, SetDevice};

use super::{Answer, BodyRefused, Machine, apart};
use crate::api::error::Refusal;
use crate::api::extract::{Body, Number};

/// The accelerators
#[utoipa::path(
    get, path = "/v1/devices", tag = "devices",
    responses(
        (status = 200, body = Devices)
    )
)]
pub(super) async fn devices(State(live): Machine) -> Answer<Devices> {
    live.devices().map(Json)
}

/// An accelerator
#[utoipa::path(
    get, path = "/v1/devices/{device}", tag = "devices", params(("device" = u8, Path, description = "Its number")),
    responses(
        (status = 200, body = Device),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn device(State(live): Machine, Number(device): Number<u8>) -> Answer<Device> {
    live.device(device).map(Json)
}

/// Change the size of an accelerator's memory
///
/// The answer comes when no more of it is in use than is to be: a memory that shrinks is emptied in the order of the policy. Its
/// pages move to system memory. If they cannot, it keeps its size. The guest is told the size that the memory had at the beginning.
#[utoipa::path(
    put, path = "/v1/devices/{device}", tag = "devices", params(("device" = u8, Path, description = "Its number")), request_body = SetDevice,
    responses(
        (status = 200, body = Device),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn set_device(
    State(live): Machine,
    Number(device): Number<u8>,
    Body(to): Body<SetDevice>,
) -> Answer<Device> {
    apart(live, move |live| live.set_device(device, to))
        .await
        .map(Json)
}

/// Detach an accelerator
///
/// The answer comes when all its pages are in system memory; meanwhile `used_pages` of the accelerator tells how many are left. The
/// guest's commands fail from then on. On an error the pages that are left stay reachable, and it can be tried again. If it is
/// cancelled, the accelerator is attached again; commands that needed its memory meanwhile have failed.
#[utoipa::path(
    post, path = "/v1/devices/{device}/detach", tag = "devices", params(("device" = u8, Path, description = "Its number")),
    responses(
        (status = 200, body = Device),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn detach(State(live): Machine, Number(device): Number<u8>) -> Answer<Device> {
    apart(live, move |live| live.detach(device)).await.map(Json)
}

/// What is to happen to an accelerator's migrations
#[utoipa::path(
    get, path = "/v1/devices/{device}/provocations", tag = "devices", params(("device" = u8, Path, description = "Its number")),
    responses(
        (status = 200, body = Provocations),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn provocations(
    State(live): Machine,
    Number(device): Number<u8>,
) -> Answer<Provocations> {
    live.provocations(device).map(Json)
}

/// Have an accelerator's migrations fail or take longer at a way-point
#[utoipa::path(
    post, path = "/v1/devices/{device}/provocations", tag = "devices", params(("device" = u8, Path, description = "Its number")), request_body = Provoke,
    responses(
        (status = 200, body = Provocations),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn provoke(
    State(live): Machine,
    Number(device): Number<u8>,
    Body(what): Body<Provoke>,
) -> Answer<Provocations> {
    apart(live, move |live| live.provoke(device, what))
        .await
        .map(Json)
}

/// End all provocations of an accelerator, and the delays that last
#[utoipa::path(
    delete, path = "/v1/devices/{device}/provocations", tag = "devices", params(("device" = u8, Path, description = "Its number")),
    responses(
        (status = 204),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn end_provocations(
    State(live): Machine,
    Number(device): Number<u8>,
) -> Result<StatusCode, Refusal> {
    live.end_provocations(device)?;
    Ok(StatusCode::NO_CONTENT)
}
