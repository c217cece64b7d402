//! A plain HTTP client: one connection a request, no surprises.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A server's address.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: SocketAddr,
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: hyper::HeaderMap,
    /// All of the body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The `data:` payloads of an event stream.
    pub fn events(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.body);
        text.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
    }
}

impl Client {
    /// Of the server at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Sends a request and returns the reply's head, body still streaming.
    ///
    /// # Errors
    /// When the server cannot be reached or closes.
    pub async fn send(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        #[expect(clippy::disallowed_methods, reason = "ends with its connection")]
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }

    /// Builds a request to `path`.
    ///
    /// # Panics
    /// When `path` is not one.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> http::Request<Full<Bytes>> {
        http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .expect("a well-formed request")
    }

    /// `GET path`, whole.
    ///
    /// # Errors
    /// When the server cannot be reached or closes.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        whole(self.send(self.request("GET", path, "")).await?).await
    }

    /// `POST path` with JSON, whole.
    ///
    /// # Errors
    /// When the server cannot be reached or closes.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        whole(self.send(self.request("POST", path, body.to_string())).await?).await
    }

    /// `GET path` for tests that are not async; `None` when it fails.
    pub fn get_blocking(&self, path: &str) -> Option<Reply> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(self.get(path)).ok()
    }
}

/// Reads the rest of a reply.
///
/// # Errors
/// When it breaks off.
pub async fn whole(reply: http::Response<Incoming>) -> anyhow::Result<Reply> {
    let status = reply.status().as_u16();
    let headers = reply.headers().clone();
    let body = reply.into_body().collect().await?.to_bytes();
    Ok(Reply { status, headers, body })
}
