//! Why a mesh cannot be opened, and what can be done about it.

use std::path::PathBuf;

use mesh::MeshError;
use thiserror::Error;

use super::interpreter::VERSION;

/// Why a mesh cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// `import ttnn` fails.
    #[error(
        "the Python package ttnn cannot be imported by Python {python}: {message}; \
         run `pip install ttnn=={VERSION}` with Python 3.10 or 3.12, and name the \
         site-packages it went to unless this process finds it by PYTHONPATH"
    )]
    NotInstalled {
        /// Version of the interpreter in this process.
        python: String,
        /// The import's own error.
        message: String,
    },
    /// Another version of `ttnn` than this program is written for.
    #[error(
        "the Python package ttnn is version {found}, this program needs {VERSION}: \
         run `pip install ttnn=={VERSION}`"
    )]
    Version {
        /// Version of the package.
        found: String,
    },
    /// The named folder of packages is not there.
    #[error("site-packages {path} is not a folder")]
    SitePackages {
        /// As given.
        path: PathBuf,
    },
    /// The description of mock devices is not there.
    #[error("the cluster descriptor of mock devices {path} is not a file")]
    Descriptor {
        /// As given.
        path: PathBuf,
    },
    /// `ttnn` reads the description of its devices once a process.
    #[error(
        "this process has opened {opened} before and cannot open {asked}: \
         start another process"
    )]
    OneClusterPerProcess {
        /// What was opened first.
        opened: String,
        /// What was to be opened now.
        asked: String,
    },
    /// There is no shape of mesh with this many chips.
    #[error("{0} chips were asked for, a mesh has 1, 2 or 8")]
    NumChips(usize),
    /// This host has no card.
    #[error(
        "no Tenstorrent card is in this host: check that /dev/tenstorrent/0 is there and may be \
         read, install the kernel driver tt-kmd, and pass the device into the container"
    )]
    NoCard,
    /// This host's cards have fewer chips.
    #[error(
        "{wanted} chips were asked for, this host's {cluster} has {found}: \
         choose the device that is there"
    )]
    TooFewChips {
        /// As asked for.
        wanted: usize,
        /// Of all cards together.
        found: usize,
        /// `ttnn`'s name for them.
        cluster: String,
    },
    /// Another process has the cards.
    #[error("the card is in use: {message}; end the process that holds it, or wait for its end")]
    Busy {
        /// The driver's own words.
        message: String,
    },
    /// Anything else that went wrong on the way.
    #[error("opening the mesh: {0}")]
    Device(String),
}

impl From<OpenError> for MeshError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NumChips(_) | OpenError::TooFewChips { .. } => {
                Self::DoesNotFit(error.to_string())
            }
            _ => Self::Device(error.to_string()),
        }
    }
}
