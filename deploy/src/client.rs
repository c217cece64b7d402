//! A small OpenAI client: what `chat` and `models` need of HTTP, and no more.

mod sse;

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

use self::sse::Events;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a reply that is not a stream.
const MAX_REPLY_BYTES: usize = 4 << 20;

/// A gateway at a URL.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    authority: String,
}

/// What an answer's stream says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// More text.
    Text(String),
    /// Why it ended.
    Finish(String),
    /// Counts, once, after the text.
    Usage(Usage),
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    #[serde(default)]
    pub(crate) prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Part of [`Usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct PromptTokensDetails {
    #[serde(default)]
    pub(crate) cached_tokens: u32,
}

impl Client {
    /// `url` is `http://HOST:PORT`.
    ///
    /// # Errors
    /// When it is anything else.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") {
            bail!("{url:?} must start with http://");
        }
        let authority = uri.authority().with_context(|| format!("{url:?} names no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()) })
    }

    /// Whether the gateway can serve now.
    pub(crate) async fn is_ready(&self) -> bool {
        let reply = self.send(Method::GET, "/ready", None).await;
        reply.is_ok_and(|reply| reply.status() == StatusCode::OK)
    }

    /// `GET /v1/models`.
    ///
    /// # Errors
    /// When the gateway cannot be reached or refuses.
    pub(crate) async fn models(&self) -> anyhow::Result<Value> {
        let reply = self.send(Method::GET, "/v1/models", None).await?;
        let reply = accepted(reply).await?;
        let body = whole_body(reply).await?;
        serde_json::from_slice(&body).context("the gateway's reply is not JSON")
    }

    /// The first model's id.
    ///
    /// # Errors
    /// As [`Client::models`], and when there is none.
    pub(crate) async fn first_model(&self) -> anyhow::Result<String> {
        let models = self.models().await?;
        let id = models.pointer("/data/0/id").and_then(Value::as_str);
        Ok(id.context("the gateway serves no model")?.to_owned())
    }

    /// Starts a streamed chat answer. Dropping the result cancels it.
    ///
    /// # Errors
    /// When the gateway cannot be reached or refuses.
    pub(crate) async fn chat(&self, request: &Value) -> anyhow::Result<Answer> {
        let body = serde_json::to_vec(request).context("the request is not JSON")?;
        let reply = self.send(Method::POST, "/v1/chat/completions", Some(body)).await?;
        Ok(Answer { body: accepted(reply).await?.into_body(), events: Events::default() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let connect = TcpStream::connect(&self.authority);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .with_context(|| format!("{} does not answer", self.authority))?
            .with_context(|| format!("cannot connect to {}", self.authority))?;
        // Small requests should not wait for a fuller packet.
        stream.set_nodelay(true).context("cannot set up the connection")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(|| format!("{} does not speak HTTP", self.authority))?;
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with its connection; nothing to drain"
        )]
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.authority)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .context("cannot build the request")?;
        sender.send_request(request).await.context("the gateway closed the connection")
    }
}

/// A streamed answer.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    events: Events,
}

impl Answer {
    /// The next part; `None` after the last.
    ///
    /// # Errors
    /// When the stream breaks off or carries an error.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Part>> {
        loop {
            if let Some(part) = self.events.next_part()? {
                return Ok(Some(part));
            }
            if self.events.is_done() {
                return Ok(None);
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.context("the answer broke off")?;
                    if let Ok(data) = frame.into_data() {
                        self.events.push(&data);
                    }
                }
                None => bail!("the answer broke off before its end"),
            }
        }
    }
}

async fn accepted(reply: http::Response<Incoming>) -> anyhow::Result<http::Response<Incoming>> {
    let status = reply.status();
    if status.is_success() {
        return Ok(reply);
    }
    let body = whole_body(reply).await?;
    let message = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|body| Some(body.pointer("/error/message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    bail!("the gateway refused ({status}): {message}")
}

async fn whole_body(reply: http::Response<Incoming>) -> anyhow::Result<Bytes> {
    let body = http_body_util::Limited::new(reply.into_body(), MAX_REPLY_BYTES);
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => bail!("cannot read the gateway's reply: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(
            Client::new("http://localhost:8000/").expect("good").authority,
            "localhost:8000"
        );
        assert_eq!(Client::new("http://10.0.0.1").expect("good").authority, "10.0.0.1:80");
        assert!(Client::new("https://localhost").is_err());
        assert!(Client::new("localhost:8000").is_err());
        assert!(Client::new("").is_err());
    }
}
