//! Why a checkpoint cannot be used.

use std::path::{Path, PathBuf};

use crate::config::{ConfigError, Llama3Size};
use crate::pth::PthError;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be opened or read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file has become shorter or was written to since it was opened.
    #[error("{} changed while it was being read", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The path is no checkpoint of a known kind.
    #[error("{} is no checkpoint: {message}", .path.display())]
    Unrecognised {
        /// What was opened.
        path: PathBuf,
        /// What was looked for.
        message: String,
    },
    /// The path names another member of the Llama 3 family than it holds.
    #[error(
        "{} names {named}, but its files are of {found}: rename the directory, \
         or set ignore_model_name (--ignore-model-name) to believe the files",
        .path.display()
    )]
    NameConflict {
        /// What was opened.
        path: PathBuf,
        /// What it names.
        named: Llama3Size,
        /// The member that the configuration is of, or its shape.
        found: String,
    },
    /// The model's configuration cannot be served.
    #[error("{}: {source}", .path.display())]
    Config {
        /// The file that holds it.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// A file breaks the rules of its format.
    #[error("{}: {message}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// How.
        message: String,
    },
    /// A `.pth` file that is not read.
    #[error("{}: {source}", .path.display())]
    Pth {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PthError,
    },
    /// A weight is absent.
    #[error("tensor {name} is missing, expected with shape {expected:?}")]
    MissingTensor {
        /// Name, as the checkpoint would spell it.
        name: String,
        /// `[rows, cols]`
        expected: Vec<usize>,
    },
    /// A weight does not have the shape that the configuration says.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// Name in the checkpoint.
        name: String,
        /// Shape in the checkpoint, rows first.
        found: Vec<u64>,
        /// `[rows, cols]`
        expected: Vec<usize>,
    },
    /// A weight's bytes do not make up its shape, or its values make no sense.
    #[error("tensor {name}: {message}")]
    WrongData {
        /// Name in the checkpoint.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A tensor that a dense Llama does not have, such as a bias: to ignore it
    /// would give wrong answers.
    #[error("tensor {name} is not part of a dense Llama model")]
    UnexpectedTensor {
        /// Name in the checkpoint.
        name: String,
    },
    /// Values in a format that is not read.
    #[error("tensor {name} has type {found}, weights are read as F32, F16 or BF16")]
    UnsupportedType {
        /// Name in the checkpoint.
        name: String,
        /// Its type.
        found: String,
    },
}

impl CheckpointError {
    pub(super) fn malformed(path: &Path, message: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), message: message.into() }
    }

    pub(super) fn unrecognised(path: &Path, message: &str) -> Self {
        Self::Unrecognised { path: path.to_owned(), message: message.to_owned() }
    }
}
