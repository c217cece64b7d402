//! From an endpoint's name to a channel, with the transport settings that a
//! long-lived stream of small frames needs.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// One slow reader on a connection must not close the window for the others:
/// well over what a worker may have unacknowledged.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const UNIX_PREFIX: &str = "unix:";

/// Connects now.
pub(super) async fn dial(
    endpoint: &str,
    timeout: Duration,
) -> Result<Channel, tonic::transport::Error> {
    match endpoint.strip_prefix(UNIX_PREFIX) {
        None => profile(Endpoint::from_shared(endpoint.to_owned())?, timeout).connect().await,
        Some(path) => {
            let path = PathBuf::from(path);
            let connect = service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // HTTP/2 wants an authority; a Unix socket has none.
            let endpoint = profile(Endpoint::from_static("http://localhost"), timeout);
            endpoint.connect_with_connector(connect).await
        }
    }
}

fn profile(endpoint: Endpoint, timeout: Duration) -> Endpoint {
    endpoint
        .connect_timeout(timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}
