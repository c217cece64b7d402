//! The accept loop of every port: one connection budget for HTTP and gRPC.
//!
//! axum's and tonic's own servers leave defences off (no timer for headers, no
//! bound on streams and resets), so connections are served by hyper directly.
//! Nothing that a client does ends the loop.

mod budget;
mod pace;
mod slots;
mod socket;
mod stall;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use common::shutdown::Shutdown;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

pub(crate) use self::budget::ConnectionBudget;
use self::pace::Pace;
use self::slots::{Slot, Slots};
use self::socket::Socket;
use self::stall::{StreamExecutor, watched};
use crate::http::guarded::guarded;

/// How every HTTP/2 connection begins.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause after an error of `accept` that is not the connection's own, such as
/// too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Answers requests; a clone for each connection.
pub(crate) trait Answer: Clone + Send + Sync + 'static {
    /// Answers one. Dropped when the client goes away.
    fn answer(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

impl Answer for Arc<crate::http::door::Door> {
    fn answer(&self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send {
        crate::http::door::Door::answer(self.clone(), request)
    }
}

/// A bound port with nothing running yet.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    budget: Arc<ConnectionBudget>,
    slots: Slots,
}

impl Listener {
    /// Binds `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) async fn bind(
        address: SocketAddr,
        budget: Arc<ConnectionBudget>,
    ) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let slots = Slots::new(budget.max_connections, budget.max_connections_per_ip);
        Ok(Self { tcp, budget, slots })
    }

    /// The real address.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Accepts until the drain begins. Connections are tasks of `shutdown`:
    /// told of the drain, they finish what is in flight, and are dropped when
    /// the grace has passed.
    pub(crate) async fn serve<A: Answer>(self, answer: A, shutdown: Shutdown) {
        loop {
            // Both are cancel safe.
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = shutdown.draining().cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !is_the_clients(&error) {
                        tracing::warn!(%error, "cannot accept connections");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                    continue;
                }
            };
            // One over the bound is closed at once: those inside are served, and
            // the backlog does not grow.
            let Some(slot) = self.slots.take(peer.ip()) else {
                tracing::debug!(%peer, "connection limit reached");
                continue;
            };
            let connection = Connection {
                budget: Arc::clone(&self.budget),
                shutdown: shutdown.clone(),
                _slot: slot,
            };
            let answer = answer.clone();
            shutdown.spawn("connection", connection.run(stream, answer));
        }
    }
}

/// Errors of `accept` that belong to the connection that was to be accepted.
fn is_the_clients(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

struct Connection {
    budget: Arc<ConnectionBudget>,
    shutdown: Shutdown,
    _slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

impl Connection {
    async fn run<A: Answer>(self, mut stream: TcpStream, answer: A) {
        // Tokens are small; each goes out at once.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let cancelled = self.shutdown.cancelled().clone();
        let serve = async {
            let Some((version, prefix)) = sniff(&mut stream, &self.budget).await else { return };
            match version {
                Version::Http1 => self.serve_http1(stream, prefix, answer).await,
                Version::Http2 => self.serve_http2(stream, prefix, answer).await,
            }
        };
        // At the end of the grace everything of this connection is dropped.
        cancelled.run_until_cancelled_owned(serve).await;
    }

    async fn serve_http1<A: Answer>(&self, stream: TcpStream, prefix: Bytes, answer: A) {
        let pace = Pace::new(self.budget.head_timeout, self.budget.idle_timeout);
        let socket =
            Socket::new(stream, prefix, self.budget.write_timeout).with_pace(Arc::clone(&pace));
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = pace.begin();
            let answer = answer.clone();
            async move {
                let response = answer.answer(request.map(Body::new)).await;
                Ok::<_, Infallible>(response.map(|body| guarded(body, busy)))
            }
        });
        let connection = self.budget.http1().serve_connection(socket, service);
        self.run_to_its_end(connection).await;
    }

    async fn serve_http2<A: Answer>(&self, stream: TcpStream, prefix: Bytes, answer: A) {
        let socket = Socket::new(stream, prefix, self.budget.write_timeout);
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer.clone();
            async move {
                let response = answer.answer(request.map(Body::new)).await;
                Ok::<_, Infallible>(response.map(watched))
            }
        });
        let executor = StreamExecutor::new(self.shutdown.clone(), self.budget.write_timeout);
        let connection = self.budget.http2(executor).serve_connection(socket, service);
        self.run_to_its_end(connection).await;
    }

    /// Drives a connection; at its age or a drain it takes no further requests,
    /// and what is in flight has some time to end. (At a drain the grace is
    /// shorter, and cuts in `run`.)
    async fn run_to_its_end<C>(&self, connection: C)
    where
        C: GracefulConnection<Error = hyper::Error>,
    {
        let mut connection = pin!(connection);
        // Both are cancel safe.
        let end_of_acceptance = async {
            tokio::select! {
                () = self.shutdown.draining().cancelled() => {}
                () = tokio::time::sleep(self.budget.max_age) => {}
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return log_end(ended),
            () = end_of_acceptance => connection.as_mut().graceful_shutdown(),
        }
        let in_flight = tokio::time::timeout(self.budget.max_age_grace, connection).await;
        log_end(in_flight.unwrap_or(Ok(())));
    }
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        // Clients come and go; nothing here is news above this level.
        tracing::debug!(%error, "connection ended");
    }
}

/// Reads until it is clear which protocol this is: `None` if the client says
/// nothing, too little, or leaves.
async fn sniff(stream: &mut TcpStream, budget: &ConnectionBudget) -> Option<(Version, Bytes)> {
    let mut read = [0_u8; HTTP2_PREFACE.len()];
    let first_byte = stream.read(&mut read);
    let mut length =
        tokio::time::timeout(budget.first_byte_timeout, first_byte).await.ok()?.ok()?;
    let rest = async {
        loop {
            if length == 0 {
                return None;
            }
            if read[..length] != HTTP2_PREFACE[..length] {
                return Some((Version::Http1, Bytes::copy_from_slice(&read[..length])));
            }
            if length == read.len() {
                return Some((Version::Http2, Bytes::copy_from_slice(&read)));
            }
            match stream.read(&mut read[length..]).await {
                Ok(0) | Err(_) => return None,
                Ok(more) => length += more,
            }
        }
    };
    tokio::time::timeout(budget.head_timeout, rest).await.ok()?
}

#[cfg(test)]
mod tests;
