//! The API's socket and the thread that serves it.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hmmvisor_devices::thread::{self, Thread};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, watch};
use tower_service::Service;

use super::error::ApiError;
use super::live::Live;
use super::patience::Patience;
use super::routes;
use crate::config::{ApiConfig, MetricsAddress};

/// The most connections at a time; others wait to be accepted.
const CONNECTIONS: usize = 128;
/// The most connections that wait to be accepted; more fail, or wait in the client.
const WAITING: i32 = 4096;
/// The most requests at a time whose work may sleep.
const WORKERS: usize = 8;
/// How long a client may take to send the head of a request. A connection that is idle for as long is closed.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How often the thread looks whether connections have ended, when there are too many.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(5);
/// How long the thread waits for descriptors when accepting has failed for want of them.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
/// How long a connection may wait for its client when there are too many: what the client sends or reads may be on its way.
const CROWDED_WAIT: Duration = Duration::from_millis(200);
/// How long a connection may last, unless it carries a stream.
const CONNECTION_WITHIN: Duration = Duration::from_secs(600);
/// How long the API's threads may take to end.
const ENDED_WITHIN: Duration = Duration::from_millis(200);

/// What a machine answers at.
pub(crate) struct Listeners {
    unix: Option<(UnixListener, Socket)>,
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// Makes the sockets that a configuration asks for; none if it asks for none. Only the process's user can open the Unix
    /// socket.
    pub(crate) fn of(config: &ApiConfig) -> Result<Option<Listeners>, ApiError> {
        let unix = config.socket.as_deref().map(Socket::bind).transpose()?;
        let metrics = config.metrics.map(|MetricsAddress(address)| {
            let listening = TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            listening.map_err(|error| ApiError::Metrics { address, error })
        });
        let listeners = Listeners {
            unix,
            metrics: metrics.transpose()?,
        };
        let any = listeners.unix.is_some() || listeners.metrics.is_some();
        Ok(any.then_some(listeners))
    }

    /// Returns where the metrics are served by TCP, if they are.
    pub(crate) fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref()?.local_addr().ok()
    }
}

/// The thread that answers. Dropping it removes the socket.
pub(crate) struct ApiServer {
    socket: Option<Socket>,
    stop: watch::Sender<bool>,
    thread: Option<Thread<()>>,
}

impl ApiServer {
    /// Starts to answer.
    pub(crate) fn start(listeners: Listeners, live: Live) -> Result<ApiServer, ApiError> {
        let address = listeners.metrics();
        let Listeners { unix, metrics } = listeners;
        let (unix, socket) = unix.unzip();
        if let Some(socket) = &socket {
            tracing::info!(socket = %socket.path.display(), "the API answers");
        }
        if let Some(address) = address {
            tracing::info!(url = %format_args!("http://{address}/metrics"), "metrics are served");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WORKERS)
            .thread_name("api-worker")
            // The workers have the rights of the thread below; so have the threads that they start.
            .on_thread_start(thread::passes_on)
            .build()
            .map_err(ApiError::Thread)?;
        let ending = live.ending.clone();
        let (stop, stopped) = watch::channel(false);
        let live = Arc::new(live);
        let on_panic = ending.on_panic();
        let body = move || {
            let served = runtime.block_on(async {
                let unix = unix.map(tokio::net::UnixListener::from_std).transpose()?;
                let metrics = metrics.map(tokio::net::TcpListener::from_std).transpose()?;
                let unix = unix.map(|it| serve(it, routes::router(live.clone()), stopped.clone()));
                let metrics =
                    metrics.map(|it| serve(it, routes::metrics_router(live), stopped.clone()));
                tokio::join!(maybe(unix), maybe(metrics));
                Ok(())
            });
            runtime.shutdown_timeout(ENDED_WITHIN);
            if let Err(error) = served {
                ending.event_failed("watching the API's sockets", &error);
            }
        };
        let thread = thread::spawn("api", on_panic, body).map_err(ApiError::Thread)?;
        Ok(ApiServer {
            socket,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Before the thread ends, so that a client that finds a socket finds one that answers.
        drop(self.socket.take());
        // The receiver is gone if the thread has ended.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already.
            let _ = thread.join_within(2 * ENDED_WITHIN);
        }
    }
}

async fn maybe(serving: Option<impl Future<Output = ()>>) {
    if let Some(serving) = serving {
        serving.await;
    }
}

/// The socket's place in the file system.
struct Socket {
    path: PathBuf,
    /// Device and inode: another process may have put something else there since.
    identity: Option<(u64, u64)>,
}

impl Socket {
    fn bind(path: &Path) -> Result<(UnixListener, Socket), ApiError> {
        let failed = |what| {
            move |error: io::Error| ApiError::Socket {
                path: path.to_owned(),
                what,
                error,
            }
        };
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(ApiError::NoSocket(path.to_owned()));
            }
            match UnixStream::connect(path) {
                // Nothing listens there any more.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed("removing the old one"))?;
                }
                Ok(_) => return Err(ApiError::InUse(path.to_owned())),
                Err(error) => return Err(failed("looking who answers")(error)),
            }
        }
        let listener = listen(path).map_err(failed("listening"))?;
        let identity = path.symlink_metadata().ok();
        let socket = Socket {
            path: path.to_owned(),
            identity: identity.map(|it| (it.dev(), it.ino())),
        };
        Ok((listener, socket))
    }
}

impl Drop for Socket {
    /// Removes the socket, if it is still the same.
    fn drop(&mut self) {
        let now = self.path.symlink_metadata().ok();
        let now = now.map(|it| (it.dev(), it.ino()));
        if now.is_some() && now == self.identity {
            // A socket that stays is replaced by the next machine.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket that no other user may open, from its first moment on: Linux takes the mode from the unbound socket.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(UnixListener::from(socket))
}

/// A source of connections.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    async fn accept(&self) -> io::Result<Self::Stream>;
}

impl Accept for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> io::Result<tokio::net::TcpStream> {
        Ok(self.accept().await?.0)
    }
}

/// Answers until it is stopped.
async fn serve(listener: impl Accept, router: Router, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let crowded = Arc::new(Notify::new());
    let stop = stopped.clone();
    let accepting = async {
        loop {
            let slot = loop {
                match slots.clone().try_acquire_owned() {
                    Ok(slot) => break slot,
                    // Connections that wait for their clients end, and make room.
                    Err(_) => crowded.notify_waiters(),
                }
                tokio::time::sleep(LOOK_FOR_ROOM).await;
            };
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                // Out of descriptors: some come back when connections end.
                Err(_) => {
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let (router, stop, crowded) = (router.clone(), stop.clone(), crowded.clone());
            tokio::spawn(async move {
                converse(stream, router, stop, &crowded).await;
                drop(slot);
            });
        }
    };
    tokio::select! {
        _ = accepting => {}
        _ = stopped.changed() => {}
    }
}

/// Answers the requests of one connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut stop: watch::Receiver<bool>,
    crowded: &Notify,
) {
    let mut until = Instant::now() + CONNECTION_WITHIN;
    let patience = Patience::default();
    let its = patience.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(its.clone());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (answering, answer) = (its.answer(), router.clone().call(request));
        async move {
            let Ok(answer) = answer.await;
            if !method.is_safe() {
                tracing::info!(%method, path, status = answer.status().as_u16(), "answered a request");
            }
            drop(answering);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error is the client's: it has gone, or spoken no HTTP.
    loop {
        tokio::select! {
            _ = &mut connection => return,
            _ = tokio::time::sleep_until(until.into()) => {
                if !patience.is_without_end() {
                    return;
                }
                until += CONNECTION_WITHIN;
            }
            _ = crowded.notified() => {
                if patience.waited().is_some_and(|it| it > CROWDED_WAIT) {
                    return;
                }
            }
            _ = stop.changed() => {
                // What is being answered is answered.
                connection.as_mut().graceful_shutdown();
                let _ = tokio::time::timeout(ENDED_WITHIN, connection).await;
                return;
            }
        }
    }
}
