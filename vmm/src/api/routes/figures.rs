//! Figures, events and recordings.

use std::path::PathBuf;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hmmvisor_api::{Event, Problem, Record, Recording};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, BodyRefused, Machine, apart};
use crate::api::error::Refusal;
use crate::api::extract::{Asked, Body};
use crate::api::live::Live;
use crate::api::patience::Patience;
use crate::api::{events as stream, metrics as prometheus};

/// Which events are wanted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Kinds {
    /// Kinds with commas between them, like `cpu-fault,to-device`; all without.
    kinds: Option<String>,
}

/// The figures so far, with the names of `--json`
///
/// `end` is null while the run goes on, as are figures that are taken at its end.
#[utoipa::path(
    get, path = "/v1/stats", tag = "figures",
    responses(
        (status = 200, body = BTreeMap<String, serde_json::Value>)
    )
)]
pub(super) async fn stats(State(live): Machine) -> Result<Response, Refusal> {
    let report = apart(live, |live| Ok(live.run.report())).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], report).into_response())
}

/// The figures so far, for Prometheus
#[utoipa::path(
    get, path = "/v1/metrics", tag = "figures",
    responses(
        (status = 200, body = String, content_type = "text/plain")
    )
)]
pub(super) async fn metrics(State(live): Machine) -> Result<Response, Refusal> {
    let text = apart(live, |live| Ok(prometheus::text(live))).await?;
    Ok(([(header::CONTENT_TYPE, prometheus::TYPE)], text).into_response())
}

/// What happens, from now on
///
/// A line of JSON for each event, until the client closes the connection or the run ends. Events that the client does not read in time
/// are dropped, and a line says how many.
#[utoipa::path(
    get, path = "/v1/events", tag = "figures", params(Kinds),
    responses(
        (status = 200, body = Event, content_type = "application/x-ndjson"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn events(
    State(live): Machine,
    Extension(patience): Extension<Patience>,
    Asked(asked): Asked<Kinds>,
) -> Result<Response, Refusal> {
    let kinds = stream::kinds(asked.kinds.as_deref())?;
    live.going_on()?;
    let events = stream::stream(&live, kinds, &patience)?;
    let kind = [(header::CONTENT_TYPE, stream::TYPE)];
    Ok((kind, events).into_response())
}

/// The recording, or the last one
#[utoipa::path(
    get, path = "/v1/recording", tag = "figures",
    responses(
        (status = 200, body = Recording)
    )
)]
pub(super) async fn recording(State(live): Machine) -> Answer<Recording> {
    apart(live, |live| Ok(live.run.recording())).await.map(Json)
}

/// Begin to record a trace
///
/// The trace says first where pages are, and then what happens from then on. While the machine is paused, it tells of all pages as
/// they are at one moment.
#[utoipa::path(
    put, path = "/v1/recording", tag = "figures", request_body = Record,
    responses(
        (status = 200, body = Recording),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        BodyRefused
    )
)]
pub(super) async fn record(
    State(live): Machine,
    Body(Record { path }): Body<Record>,
) -> Answer<Recording> {
    let begin = move |live: &Live| begin_recording(live, PathBuf::from(path));
    apart(live, begin).await.map(Json)
}

/// End the recording; the answer comes when its file is complete
#[utoipa::path(
    delete, path = "/v1/recording", tag = "figures",
    responses(
        (status = 200, body = Recording),
        (status = 409, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn end_recording(State(live): Machine) -> Answer<Recording> {
    apart(live, |live| live.run.end_recording()).await.map(Json)
}

fn begin_recording(live: &Live, path: PathBuf) -> Result<Recording, Refusal> {
    live.going_on()?;
    live.run.record(&path)?;
    Ok(live.run.recording())
}
