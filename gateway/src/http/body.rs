//! Reading a request's body within bounds of size, pace and memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::error::GatewayError;

/// Over each such time a body must make progress.
const WINDOW: Duration = Duration::from_secs(10);
/// Least progress over one window: 1 KiB a second.
const MIN_WINDOW_BYTES: usize = 10 * 1024;
/// Of a body that is refused for its size, so much is read and thrown away, for
/// so long: a connection that is closed with bytes unread is reset, and its
/// client would see that instead of the answer.
const MAX_DISCARD_BYTES: u64 = 64 << 20;
const MAX_DISCARD: Duration = Duration::from_secs(2);
/// When to come back if too many bodies are being read.
const RETRY: Duration = Duration::from_secs(1);

/// Bounds on bodies, one for the whole gateway; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    max_body_bytes: usize,
    max_total_bytes: usize,
    held_bytes: Arc<AtomicUsize>,
}

impl BodyLimits {
    /// One body has at most `max_body_bytes`; all bodies that are being read
    /// have at most `max_total_bytes` together.
    pub(crate) fn new(max_body_bytes: usize, max_total_bytes: usize) -> Self {
        Self { max_body_bytes, max_total_bytes, held_bytes: Arc::default() }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It is too large (by declaration, before anything is read, or in fact),
    /// stalls, breaks off, or there is no room.
    pub(crate) async fn read(&self, mut body: Body) -> Result<HeldBody, GatewayError> {
        let declared = http_body::Body::size_hint(&body).lower();
        if declared > self.max_body_bytes as u64 {
            discard(body, declared).await;
            return Err(self.too_large());
        }
        let mut held = HeldBody { data: BytesMut::new(), limits: self.clone() };
        let mut window_end = Instant::now() + WINDOW;
        let mut window_bytes = 0;
        loop {
            let frame = match tokio::time::timeout_at(window_end, body.frame()).await {
                Ok(None) => return Ok(held),
                Ok(Some(Ok(frame))) => frame,
                // The connection broke: nobody reads the answer.
                Ok(Some(Err(_))) => return Err(GatewayError::Cancelled),
                Err(_) if window_bytes < MIN_WINDOW_BYTES => {
                    return Err(GatewayError::UploadStalled);
                }
                Err(_) => {
                    window_end += WINDOW;
                    window_bytes = 0;
                    continue;
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if held.data.len() + data.len() > self.max_body_bytes {
                drop(held);
                discard(body, 0).await;
                return Err(self.too_large());
            }
            window_bytes += data.len();
            held.extend(&data)?;
        }
    }

    fn too_large(&self) -> GatewayError {
        GatewayError::RequestTooLarge { limit_bytes: self.max_body_bytes as u64 }
    }
}

/// Reads what is left of a body, as far as that is worth it.
async fn discard(mut body: Body, declared_bytes: u64) {
    if declared_bytes > MAX_DISCARD_BYTES {
        return;
    }
    let read = async {
        let mut left_bytes = MAX_DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let num_bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(less) = left_bytes.checked_sub(num_bytes) else { return };
            left_bytes = less;
        }
    };
    // Late or not, the answer is the same.
    let _ = tokio::time::timeout(MAX_DISCARD, read).await;
}

/// A body that is in memory, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct HeldBody {
    data: BytesMut,
    limits: BodyLimits,
}

impl HeldBody {
    fn extend(&mut self, data: &[u8]) -> Result<(), GatewayError> {
        let held = self.limits.held_bytes.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        // Counted first, so that dropping gives back what was added.
        self.data.extend_from_slice(data);
        if held > self.limits.max_total_bytes {
            return Err(GatewayError::Overloaded { retry_after: RETRY });
        }
        Ok(())
    }
}

impl std::ops::Deref for HeldBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        self.limits.held_bytes.fetch_sub(self.data.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::{StreamExt as _, stream};

    use super::*;

    const LIMITS: (usize, usize) = (64 * 1024, 100 * 1024);

    fn limits() -> BodyLimits {
        BodyLimits::new(LIMITS.0, LIMITS.1)
    }

    fn chunks(chunks: Vec<Bytes>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, Infallible>)))
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused_by_declaration_or_in_fact() {
        let limits = limits();
        let whole = limits.read(Body::from(vec![7; LIMITS.0])).await.unwrap();
        assert_eq!((whole.len(), whole[0]), (LIMITS.0, 7));
        drop(whole);
        let error = limits.read(Body::from(vec![0; LIMITS.0 + 1])).await.unwrap_err();
        assert_eq!(error.code(), "request_too_large");
        let tiny = vec![Bytes::from_static(b"x"); LIMITS.0 + 1];
        let error = limits.read(chunks(tiny)).await.unwrap_err();
        assert_eq!(error.code(), "request_too_large");
        assert_eq!(limits.held_bytes.load(Ordering::Relaxed), 0, "all is given back");
    }

    #[tokio::test]
    async fn bodies_share_one_bound() {
        let limits = limits();
        let first = limits.read(Body::from(vec![0; LIMITS.0])).await.unwrap();
        let error = limits.read(Body::from(vec![0; LIMITS.0])).await.unwrap_err();
        assert_eq!(error.code(), "overloaded");
        drop(first);
        limits.read(Body::from(vec![0; LIMITS.0])).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_dribbles_is_given_up() {
        for pause_s in [60, 1] {
            let dribble = stream::repeat(()).then(move |()| async move {
                tokio::time::sleep(Duration::from_secs(pause_s)).await;
                Ok::<_, Infallible>(Bytes::from_static(b"x"))
            });
            let begun = Instant::now();
            let body = Body::from_stream(Box::pin(dribble));
            let error = limits().read(body).await.unwrap_err();
            assert_eq!(error.http_status().as_u16(), 408);
            assert_eq!(begun.elapsed().as_secs(), 10);
        }
    }
}
