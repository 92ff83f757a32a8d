//! Requests without a socket: those of the fuzzer.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use tokio::runtime::{Builder, Runtime};
use tower_service::Service;

use super::events;
use super::live::Live;
use super::patience::Patience;
use super::routes;

/// What a request is answered with.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The media type; empty without a body.
    pub content_type: String,
    /// The body; empty if it is a stream.
    pub body: Vec<u8>,
}

/// The resources of a machine.
pub struct Resources {
    router: Router,
    runtime: Runtime,
}

impl Resources {
    pub(crate) fn of(live: Live) -> std::io::Result<Resources> {
        Ok(Resources {
            router: routes::router(Arc::new(live)),
            runtime: Builder::new_current_thread().enable_all().build()?,
        })
    }

    /// Asks. None for what HTTP has no request for, like a method or a path with spaces in it.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Option<Reply> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(kind) = content_type {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let mut request = request.body(Body::from(body)).ok()?;
        request.extensions_mut().insert(Patience::default());
        let mut router = self.router.clone();
        self.runtime.block_on(async {
            let response = match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let status = response.status().as_u16();
            let content_type = response.headers().get(header::CONTENT_TYPE);
            let content_type = content_type.and_then(|it| it.to_str().ok());
            let content_type = content_type.unwrap_or_default().to_owned();
            let body = match content_type == events::TYPE {
                true => Vec::new(),
                false => to_bytes(response.into_body(), usize::MAX)
                    .await
                    .ok()?
                    .into(),
            };
            Some(Reply {
                status,
                content_type,
                body,
            })
        })
    }
}
