//! What decides what migrates.

use axum::Json;
use axum::extract::State;
use hmmvisor_api::{Policy, Problem, SetPolicy};

use super::{Answer, BodyRefused, Machine, apart};
use crate::api::extract::Body;

/// What decides what migrates
#[utoipa::path(
    get, path = "/v1/policy", tag = "policy",
    responses(
        (status = 200, body = Policy)
    )
)]
pub(super) async fn policy(State(live): Machine) -> Json<Policy> {
    Json(live.policy())
}

/// Have another policy decide
///
/// From the answer on, the new policy decides about each fault. No fault is lost. Holds that the old policy set end at their
/// times, faults that it throttled wait as long as it said; what it only wished for does not happen.
#[utoipa::path(
    put, path = "/v1/policy", tag = "policy", request_body = SetPolicy,
    responses(
        (status = 200, body = Policy),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn set_policy(
    State(live): Machine,
    Body(request): Body<SetPolicy>,
) -> Answer<Policy> {
    apart(live, move |live| live.set_policy(&request))
        .await
        .map(Json)
}

/// Find out whether a policy could decide, and change nothing
#[utoipa::path(
    post, path = "/v1/policy/check", tag = "policy", request_body = SetPolicy,
    responses(
        (status = 200, body = Policy),
        BodyRefused
    )
)]
pub(super) async fn check(State(live): Machine, Body(request): Body<SetPolicy>) -> Answer<Policy> {
    apart(live, move |live| live.check_policy(&request))
        .await
        .map(Json)
}
