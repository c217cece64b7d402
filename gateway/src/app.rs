//! From settings to a running gateway, in two steps: [`App::build`] binds the
//! ports and reads the model, [`App::run`] serves until drained. Between them
//! the real addresses are known.

mod model;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use common::shutdown::{Drained, Shutdown};

pub use self::model::LoadError;
use self::model::LoadedModel;
use crate::config::GatewayConfig;
use crate::http::door::{Door, HostPolicy, HttpState};
use crate::http::{BodyLimits, router};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::{grpc, listener::ConnectionBudget};

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No model is named.
    #[error("no model is named")]
    NoModel,
    /// The model cannot be served.
    #[error("cannot read the model: {0}")]
    Model(#[from] LoadError),
    /// The thread that read it panicked.
    #[error("reading the model {0} failed")]
    Panicked(PathBuf),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
}
