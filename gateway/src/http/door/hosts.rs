//! Which host names are answered to. A web page can make a browser send
//! requests to this machine under the page's own name (DNS rebinding); the name
//! in `Host` gives it away. An address is nobody's name and always fine.

use std::net::{IpAddr, SocketAddr};

/// Names that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostPolicy {
    /// Whatever name leads here: others than this machine are to reach us.
    Any,
    /// Addresses, this machine's own names, and these.
    Listed(Vec<String>),
}

impl HostPolicy {
    /// The policy of a listener at `bound`: with nothing `configured`, a
    /// loopback listener answers to loopback names only, any other to all. `*`
    /// stands for every name.
    pub(crate) fn new(configured: &[String], bound: SocketAddr) -> Self {
        let open = configured.is_empty() && !bound.ip().is_loopback();
        if open || configured.iter().any(|name| name == "*") {
            return Self::Any;
        }
        Self::Listed(configured.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request with this `Host` (or `:authority`) is answered. One
    /// without is: browsers always send it.
    pub(crate) fn allow(&self, host: Option<&str>) -> bool {
        let (Self::Listed(listed), Some(host)) = (self, host) else { return true };
        let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || listed.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // An IPv6 address without a port ends in digits as well.
            if name.contains(':') && !name.starts_with('[') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_listener_answers_to_loopback_names_only() {
        let policy = HostPolicy::new(&[], "127.0.0.1:8000".parse().unwrap());
        for good in [
            "localhost",
            "localhost:8000",
            "LOCALHOST",
            "a.localhost:1",
            "127.0.0.1:8000",
            "[::1]:8000",
            "[::1]",
            "::1",
            "192.168.1.2",
            "localhost.",
        ] {
            assert!(policy.allow(Some(good)), "{good}");
        }
        for bad in [
            "evil.com",
            "evil.com:8000",
            "localhost.evil.com",
            "127.0.0.1.evil.com",
            "",
            "evil-localhost",
            "localhost@evil.com",
            "localhost:x",
            "1.2.3.4.5",
        ] {
            assert!(!policy.allow(Some(bad)), "{bad}");
        }
        assert!(policy.allow(None));
    }

    #[test]
    fn configuration_opens_and_closes() {
        let open = "0.0.0.0:8000".parse().unwrap();
        assert!(HostPolicy::new(&[], open).allow(Some("anything.example")));
        let listed = HostPolicy::new(&["API.example".to_owned()], open);
        assert!(listed.allow(Some("api.example:443")));
        assert!(!listed.allow(Some("evil.com")));
        let any = HostPolicy::new(&["*".to_owned()], "127.0.0.1:1".parse().unwrap());
        assert!(any.allow(Some("evil.com")));
    }
}
