//! Why a `.pth` file is refused.

/// What a file has that a checkpoint written by `torch.save` has not, or that
/// this reader does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PthError {
    /// No zip archive: another kind of file, or torch's format before 1.6.
    #[error("{0}")]
    NotAnArchive(String),
    /// The zip archive is damaged, or uses what `torch.save` does not.
    #[error("zip archive: {0}")]
    Archive(String),
    /// An instruction of the pickle that is not needed to describe tensors.
    #[error("pickle opcode {opcode} at byte {position} is not allowed: tensors do not need it")]
    Opcode {
        /// Its name in Python's documentation, or its byte.
        opcode: String,
        /// Byte in `data.pkl`.
        position: usize,
    },
    /// The pickle names a Python class or function that is not needed to
    /// describe tensors. Nothing of that name is ever looked up.
    #[error(
        "the pickle names {module}.{name}, which is not allowed: \
         a checkpoint is read as data, and only as a dictionary of plain tensors"
    )]
    Global {
        /// Python module.
        module: String,
        /// Name in it.
        name: String,
    },
    /// The pickle breaks its own rules.
    #[error("pickle at byte {position}: {message}")]
    Pickle {
        /// Byte in `data.pkl`, after the instruction.
        position: usize,
        /// How.
        message: String,
    },
    /// More of something than any checkpoint has.
    #[error("more than {max} {what}, which is the most that is read")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// How many would be accepted.
        max: u64,
    },
    /// A tensor that does not lie within its storage.
    #[error("tensor in storage {storage}: {message}")]
    View {
        /// Key of the storage.
        storage: String,
        /// How it does not.
        message: String,
    },
}
