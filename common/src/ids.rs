//! Names that travel through both services.
//!
//! Ids that only one service uses are defined there.

use std::fmt;
use std::sync::Arc;

/// Longest id accepted from a client, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// The name of one request in logs, traces, headers and frames.
///
/// Always 1 to [`MAX_REQUEST_ID_BYTES`] visible ASCII characters, so it can go
/// into a header, a log line or a file name's neighbour without being escaped.
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A fresh id: a UUID version 7, so that ids sort by time.
    #[must_use]
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string().into())
    }

    /// The client's own id if it is one, else `None`.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        let sane = (1..=MAX_REQUEST_ID_BYTES).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_graphic());
        sane.then(|| Self(value.into()))
    }

    /// The client's own id if it sent a usable one, else a fresh one. A header
    /// that cannot be echoed is no reason to refuse the request.
    #[must_use]
    pub fn from_client(value: Option<&str>) -> Self {
        value.and_then(Self::parse).unwrap_or_else(Self::generate)
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_visible_ascii_is_taken_from_a_client() {
        let longest = "x".repeat(MAX_REQUEST_ID_BYTES);
        for good in ["a", "req_01-éx".trim_end_matches("éx"), longest.as_str(), "a/b:c"] {
            assert_eq!(RequestId::from_client(Some(good)).as_str(), good);
        }
        let too_long = "x".repeat(MAX_REQUEST_ID_BYTES + 1);
        for bad in ["", " ", "a b", "a\r\nx: y", "é", "\0", too_long.as_str()] {
            assert_eq!(RequestId::parse(bad), None, "{bad:?}");
            assert_ne!(RequestId::from_client(Some(bad)).as_str(), bad);
        }
    }

    #[test]
    fn fresh_ids_differ_and_are_usable_as_client_ids() {
        let (a, b) = (RequestId::generate(), RequestId::generate());
        assert_ne!(a, b);
        assert_eq!(RequestId::parse(a.as_str()), Some(a));
    }
}
