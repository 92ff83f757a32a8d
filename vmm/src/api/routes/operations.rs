//! Requests that take long, while they are carried out.

use axum::Json;
use axum::extract::State;
use hmmvisor_api::{Operation, Operations, Problem};

use super::{Answer, Machine};
use crate::api::extract::Number;

/// The operations in progress
///
/// An operation is a request that takes long, from the moment at which its work begins until it is answered: a migration, a detach,
/// a change of an accelerator's memory.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operations",
    responses(
        (status = 200, body = Operations)
    )
)]
pub(super) async fn operations(State(live): Machine) -> Json<Operations> {
    Json(live.operations.all())
}

/// Cancel an operation
///
/// It ends at the next block of pages, or when all is done. The request that began it is answered then, with 409 if it had to end
/// early. Each page is where it was, or where it was to go; an accelerator stays attached, its memory keeps its size.
#[utoipa::path(
    delete, path = "/v1/operations/{operation}", tag = "operations", params(("operation" = u64, Path, description = "Its number")),
    responses(
        (status = 200, body = Operation),
        (status = 404, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn cancel(State(live): Machine, Number(number): Number<u64>) -> Answer<Operation> {
    live.operations.cancel(number).map(Json)
}
