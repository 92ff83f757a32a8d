//! The bodies and queries of requests, checked.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::Refusal;
use super::patience::Patience;

/// How long a client may take to send a body.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// The body of a request, in JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refusal> {
        if !is_json(request.headers()) {
            let detail = "send the body as application/json";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let title = "not JSON";
            return Err(Refusal::new(status, title, Some("Content-Type"), detail));
        }
        let patience = request.extensions().get::<Patience>().cloned();
        let receiving = patience.map(|it| it.receive());
        let bytes = tokio::time::timeout(BODY_WITHIN, Bytes::from_request(request, state)).await;
        drop(receiving);
        let bytes = bytes.map_err(|_| {
            let detail = format!("the body did not come within {} s", BODY_WITHIN.as_secs());
            let status = StatusCode::REQUEST_TIMEOUT;
            Refusal::new(status, "too slow", Some("body"), detail)
        })?;
        let bytes = bytes.map_err(|rejection| {
            let title = "the body cannot be taken";
            Refusal::new(
                rejection.status(),
                title,
                Some("body"),
                rejection.body_text(),
            )
        })?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let body = serde_path_to_error::deserialize(&mut json);
        let body = body.map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "body" } else { &path };
            Refusal::bad(field, error.inner())
        })?;
        match json.end() {
            Ok(()) => Ok(Body(body)),
            Err(error) => Err(Refusal::bad("body", error)),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|it| it.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// The query of a request.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, Refusal> {
        let query = Query::from_request_parts(parts, state).await;
        match query {
            Ok(Query(query)) => Ok(Asked(query)),
            Err(rejection) => {
                let text = rejection.body_text();
                let detail = text.strip_prefix("Failed to deserialize query string: ");
                Err(Refusal::bad("query", detail.unwrap_or(&text)))
            }
        }
    }
}

/// The number in the path of a request.
pub(super) struct Number<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Number<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Number<T>, Refusal> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        match path {
            Ok(axum::extract::Path(number)) => Ok(Number(number)),
            Err(_) => {
                let detail = "the path has a number in it, like /v1/devices/0";
                Err(Refusal::missing("no such resource", detail))
            }
        }
    }
}
