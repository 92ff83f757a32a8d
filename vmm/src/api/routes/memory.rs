//! Where pages are, moving them, and what may be done with them.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hmmvisor_api::{
    Hint, Memory, Migrate, Migrated, Pages, Pin, Pins, Poison, Problem, Protect, Residency,
};

use utoipa::ToSchema;

use super::{Answer, BodyRefused, Machine, apart};
use crate::api::error::Refusal;
use crate::api::extract::{Asked, Body, Number};

/// How many pages are where
#[utoipa::path(
    get, path = "/v1/memory", tag = "memory",
    responses(
        (status = 200, body = Memory)
    )
)]
pub(super) async fn summary(State(live): Machine) -> Answer<Memory> {
    apart(live, |live| live.memory()).await.map(Json)
}

/// Where the pages of a range are
#[utoipa::path(
    get, path = "/v1/memory/residency", tag = "memory", params(Pages),
    responses(
        (status = 200, body = Residency),
        (status = 400, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn residency(
    State(live): Machine,
    Asked(pages): Asked<Pages>,
) -> Answer<Residency> {
    let runs = apart(live, move |live| live.residency(pages)).await?;
    Ok(Json(Residency { runs }))
}

/// One byte for each page.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it is only described")]
struct PageBytes(Vec<u8>);

/// Where the pages of a range are, one byte for each
///
/// Bits 0 to 2: 0 untouched, 1 system, 2 device, 3 coherent, 4 duplicated, 5 exclusive, 6 poisoned. Bit 3: read-only. Bits 4 to 7:
/// the number of the accelerator, for 2 to 5.
#[utoipa::path(
    get, path = "/v1/memory/residency/bytes", tag = "memory", params(Pages),
    responses(
        (status = 200, body = PageBytes, content_type = "application/octet-stream"),
        (status = 400, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn residency_bytes(
    State(live): Machine,
    Asked(pages): Asked<Pages>,
) -> Result<Response, Refusal> {
    let bytes = apart(live, move |live| live.residency_bytes(pages)).await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, bytes).into_response())
}

/// Move pages to system memory or to an accelerator
///
/// The answer comes when they have moved. Pages that are pinned or cannot move stay where they are. Moving pages to system memory
/// evicts them. If it is cancelled, the answer is 409, and what has moved stays where it is then.
#[utoipa::path(
    post, path = "/v1/memory/migrate", tag = "memory", request_body = Migrate,
    responses(
        (status = 200, body = Migrated),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn migrate(
    State(live): Machine,
    Body(request): Body<Migrate>,
) -> Answer<Migrated> {
    let pages = apart(live, move |live| live.migrate(&request)).await?;
    Ok(Json(Migrated { pages }))
}

/// Change what CPUs and accelerators may do with pages
#[utoipa::path(
    post, path = "/v1/memory/protect", tag = "memory", request_body = Protect,
    responses(
        (status = 204),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn protect(
    State(live): Machine,
    Body(request): Body<Protect>,
) -> Result<StatusCode, Refusal> {
    apart(live, move |live| live.protect(&request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tell the policy something about pages
#[utoipa::path(
    post, path = "/v1/memory/hint", tag = "memory", request_body = Hint,
    responses(
        (status = 204),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn hint(
    State(live): Machine,
    Body(request): Body<Hint>,
) -> Result<StatusCode, Refusal> {
    apart(live, move |live| live.hint(&request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lose the contents of a page, as if the memory behind it had failed
#[utoipa::path(
    post, path = "/v1/memory/poison", tag = "memory", request_body = Poison,
    responses(
        (status = 204),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn poison(
    State(live): Machine,
    Body(Poison { page }): Body<Poison>,
) -> Result<StatusCode, Refusal> {
    apart(live, move |live| live.poison(page)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The pins that the API has made
#[utoipa::path(
    get, path = "/v1/memory/pins", tag = "memory",
    responses(
        (status = 200, body = Pins)
    )
)]
pub(super) async fn pins(State(live): Machine) -> Json<Pins> {
    Json(live.pins())
}

/// Bring pages to system memory and keep them there until the pin ends
#[utoipa::path(
    post, path = "/v1/memory/pins", tag = "memory", request_body = Pages,
    responses(
        (status = 200, body = Pin),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn pin(State(live): Machine, Body(pages): Body<Pages>) -> Answer<Pin> {
    apart(live, move |live| live.pin(pages)).await.map(Json)
}

/// End a pin
#[utoipa::path(
    delete, path = "/v1/memory/pins/{pin}", tag = "memory", params(("pin" = u64, Path, description = "Its number")),
    responses(
        (status = 204),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn unpin(
    State(live): Machine,
    Number(pin): Number<u64>,
) -> Result<StatusCode, Refusal> {
    apart(live, move |live| live.unpin(pin)).await?;
    Ok(StatusCode::NO_CONTENT)
}
