//! What can go wrong, by what the caller can do about it, and the only mapping
//! to gRPC codes.

use std::path::PathBuf;

use common::config::{ConfigError, EXIT_BAD_CONFIG};
use common::model::ModelError;
use common::telemetry::TelemetryError;
use tonic::{Code, Status};

use crate::engine::SubmitError;

/// Exit code of a process whose device failed or hung: whatever it did goes on
/// elsewhere, and it can be started again (`EX_TEMPFAIL`).
pub const EXIT_DEVICE_FAILED: u8 = 75;

/// Why a worker could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The settings are bad.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Telemetry could not be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The model's files were not found, or are damaged.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights' files are damaged or incomplete.
    #[error(transparent)]
    Checkpoint(#[from] llama::CheckpointError),
    /// The model cannot be cut for the mesh.
    #[error(transparent)]
    Plan(#[from] llama::PlanError),
    /// The device, or this machine, cannot hold the model.
    #[error(transparent)]
    DoesNotFit(#[from] llama::DoesNotFit),
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] llama::LoadError),
    /// The mesh could not be opened.
    #[error(transparent)]
    Mesh(#[from] mesh::MeshError),
    /// Another process has the cards.
    #[error(transparent)]
    Board(#[from] mesh_ttnn::board::LockError),
    /// The cards could not be opened.
    #[cfg(feature = "ttnn")]
    #[error(transparent)]
    Card(#[from] mesh_ttnn::python::OpenError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Something that is not a socket is where the socket should be.
    #[error("cannot listen on unix:{path}: {reason}", path = path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// The operating system refused a thread, a timer or a signal handler.
    #[error("the operating system refused: {0}")]
    System(#[from] std::io::Error),
    /// The server ended by itself.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The device failed; the process must be started again.
    #[error("the device failed: {0}")]
    DeviceFailed(String),
    /// A task of ours ended in a panic.
    #[error("{0} panicked")]
    Panicked(&'static str),
}

impl WorkerError {
    /// The process's exit code: 64 for bad configuration, 75 for a device that
    /// failed while it served, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => EXIT_BAD_CONFIG,
            Self::Telemetry(TelemetryError::Filter { .. } | TelemetryError::Sampling(_)) => {
                EXIT_BAD_CONFIG
            }
            Self::Telemetry(TelemetryError::Endpoint { .. }) => EXIT_BAD_CONFIG,
            Self::Plan(_) | Self::DoesNotFit(_) => EXIT_BAD_CONFIG,
            Self::DeviceFailed(_) => EXIT_DEVICE_FAILED,
            _ => 1,
        }
    }
}

/// A request that is not taken. The text is lower case and names the value and
/// the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in `Rejected` and in a call's status.
    pub code: Code,
    /// For the client.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A field that is out of range.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::QueueFull { .. } => Code::ResourceExhausted,
            SubmitError::TooLarge { .. } => Code::InvalidArgument,
            SubmitError::Draining | SubmitError::DeviceFailed(_) | SubmitError::Stopped => {
                Code::Unavailable
            }
        };
        Self::new(code, error.to_string())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_by_the_engine_have_the_contracts_codes() {
        let cases = [
            (SubmitError::QueueFull { max_waiting_seqs: 3 }, Code::ResourceExhausted),
            (SubmitError::TooLarge { what: "tokens", value: 9, limit: 8 }, Code::InvalidArgument),
            (SubmitError::Draining, Code::Unavailable),
            (SubmitError::DeviceFailed("gone".into()), Code::Unavailable),
            (SubmitError::Stopped, Code::Unavailable),
        ];
        for (error, code) in cases {
            let text = error.to_string();
            assert_eq!(Refusal::from(error), Refusal::new(code, text));
        }
    }

    #[test]
    fn exit_codes_tell_bad_settings_and_failed_devices_from_the_rest() {
        let config = WorkerError::from(ConfigError::value("threads", "is 0"));
        assert_eq!(config.exit_code(), 64);
        assert_eq!(WorkerError::DeviceFailed("x".into()).exit_code(), 75);
        assert_eq!(WorkerError::Panicked("x").exit_code(), 1);
    }
}
