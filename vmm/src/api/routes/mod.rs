//! The resources, and the document that describes them.

mod devices;
mod figures;
mod machine;
mod memory;
mod operations;
mod policy;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Refusal;
use super::live::Live;

/// No request has a body larger than this.
const MOST_BYTES: usize = 1 << 20;

type Machine = State<Arc<Live>>;
type Answer<T> = Result<Json<T>, Refusal>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hmmvisor",
        description = "A running machine: see where its pages are, and steer what migrates."
    ),
    tags(
        (name = "vm", description = "The machine as a whole"),
        (name = "memory", description = "Where pages are, moving them, and what may be done with them"),
        (name = "policy", description = "What decides what migrates"),
        (name = "devices", description = "The accelerators, and provoking their drivers"),
        (name = "operations", description = "Requests that take long, while they are carried out"),
        (name = "figures", description = "Figures, events and recordings")
    )
)]
struct Description;

/// What a request may be refused with because of its body, in the document.
struct BodyRefused;

impl IntoResponses for BodyRefused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let problem = || {
            let schema = Some(Ref::from_schema_name("Problem"));
            let content = ContentBuilder::new().schema(schema).build();
            let response = ResponseBuilder::new().content("application/problem+json", content);
            RefOr::T(response.build())
        };
        ["400", "408", "413", "415"]
            .map(|status| (status.to_owned(), problem()))
            .into()
    }
}

fn described() -> OpenApiRouter<Arc<Live>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(machine::vm))
        .routes(routes!(machine::stop))
        .routes(routes!(machine::power_button))
        .routes(routes!(machine::pause))
        .routes(routes!(machine::resume))
        .routes(routes!(machine::balloon, machine::set_balloon))
        .routes(routes!(memory::summary))
        .routes(routes!(memory::residency))
        .routes(routes!(memory::residency_bytes))
        .routes(routes!(memory::migrate))
        .routes(routes!(memory::protect))
        .routes(routes!(memory::hint))
        .routes(routes!(memory::poison))
        .routes(routes!(memory::pins, memory::pin))
        .routes(routes!(memory::unpin))
        .routes(routes!(policy::policy, policy::set_policy))
        .routes(routes!(policy::check))
        .routes(routes!(devices::devices))
        .routes(routes!(devices::device, devices::set_device))
        .routes(routes!(devices::detach))
        .routes(routes!(
            devices::provocations,
            devices::provoke,
            devices::end_provocations
        ))
        .routes(routes!(operations::operations))
        .routes(routes!(operations::cancel))
        .routes(routes!(figures::stats))
        .routes(routes!(figures::metrics))
        .routes(routes!(figures::events))
        .routes(routes!(
            figures::recording,
            figures::record,
            figures::end_recording
        ))
}

/// Returns the OpenAPI description of all resources, as JSON.
pub fn openapi() -> String {
    let description = described().split_for_parts().1;
    // It consists of maps with strings as keys.
    let text = description.to_pretty_json().unwrap_or_default();
    // The formats of integers without a sign, as OpenAPI's registry has them.
    text.replace("\"u-int", "\"uint")
}

/// Makes the resources of a machine.
pub(super) fn router(live: Arc<Live>) -> Router {
    let router = described().split_for_parts().0;
    // The description of the resources has been made along with them. It is made again for each client that asks for it, because it is
    // larger than all else that the API needs while it is idle.
    give_back_free_memory();
    let json = [(header::CONTENT_TYPE, "application/json")];
    let description = move || async move {
        let answer = (json, openapi());
        give_back_free_memory();
        answer
    };
    router
        .route("/v1/openapi.json", get(description))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(live)
}

/// Has the allocator return pages to the kernel in which nothing is allocated.
fn give_back_free_memory() {
    // SAFETY: takes a number; the function may be called at any time, by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Makes what is served by TCP: the metrics, and nothing else.
pub(super) fn metrics_router(live: Arc<Live>) -> Router {
    let none = "there are the metrics only, at /metrics; the rest of the API is at the machine's Unix socket";
    let unknown = move || async move { Refusal::missing("no such resource", none) };
    Router::new()
        .route("/metrics", get(figures::metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .with_state(live)
}

async fn unknown() -> Refusal {
    let detail = "there is no such resource; /v1/openapi.json lists all";
    Refusal::missing("no such resource", detail)
}

async fn other_method() -> Refusal {
    let detail = "the resource has no such method; /v1/openapi.json lists all";
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refusal::new(status, "no such method", None, detail)
}

/// Does work that may sleep in a thread where it delays no other request. There are a few such threads; work that finds none
/// free waits.
async fn apart<T: Send + 'static>(
    live: Arc<Live>,
    work: impl FnOnce(&Live) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(move || work(&live)).await {
        Ok(done) => done,
        Err(error) => {
            let title = "the machine has failed at the request";
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Err(Refusal::new(status, title, None, error))
        }
    }
}
