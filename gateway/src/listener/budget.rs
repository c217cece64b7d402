//! What one connection, and all of them, may cost; every number in one place.
//!
//! A hostile HTTP/2 connection is bounded by 64 streams times 16 KiB to send
//! and about 31 KiB for a 16 KiB header list, plus a 256 KiB window: 3.5 MiB.

use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;

use super::stall::StreamExecutor;

const MAX_STREAMS: u32 = 64;
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
const HEADER_TABLE_BYTES: u32 = 4 * 1024;
const MAX_SEND_BUFFER_BYTES: usize = 16 * 1024;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_ERROR_RESETS: usize = 64;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;
const HTTP1_MAX_HEADERS: usize = 100;

/// Bounds on connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionBudget {
    /// Most connections of one port; one over it is closed at once.
    pub(crate) max_connections: usize,
    /// Most connections from one address.
    pub(crate) max_connections_per_ip: usize,
    /// From the connection to its first byte.
    pub(crate) first_byte_timeout: Duration,
    /// From the first byte of a request's head to its last.
    pub(crate) head_timeout: Duration,
    /// Between two requests of an HTTP/1 connection.
    pub(crate) idle_timeout: Duration,
    /// Without progress while there is something to send.
    pub(crate) write_timeout: Duration,
    /// After this a connection takes no further requests.
    pub(crate) max_age: Duration,
    /// What is then in flight has this long to end.
    pub(crate) max_age_grace: Duration,
}

impl Default for ConnectionBudget {
    fn default() -> Self {
        Self {
            max_connections: 12_000,
            max_connections_per_ip: 256,
            first_byte_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(10),
            max_age: Duration::from_secs(60 * 60),
            max_age_grace: Duration::from_secs(5 * 60),
        }
    }
}

impl ConnectionBudget {
    /// hyper's side of HTTP/1. Its header timeout also counts idle time (and
    /// warns of it), so [`Pace`](super::pace::Pace) has that instead.
    pub(super) fn http1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(HTTP1_BUFFER_BYTES)
            .max_headers(HTTP1_MAX_HEADERS)
            .half_close(false)
            .keep_alive(true);
        builder
    }

    /// hyper's side of HTTP/2.
    pub(super) fn http2(&self, executor: StreamExecutor) -> http2::Builder<StreamExecutor> {
        let mut builder = http2::Builder::new(executor);
        builder
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .header_table_size(HEADER_TABLE_BYTES)
            .max_send_buf_size(MAX_SEND_BUFFER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESETS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        builder
    }
}
