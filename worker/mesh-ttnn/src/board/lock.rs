//! Two workers on one board: the second is refused.
//!
//! The driver itself would let it wait until the first one ends, without a word.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Longest text of a lock file that is read: a process id.
const MAX_OWNER_BYTES: u64 = 32;

/// A board cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// A worker has it.
    #[error(
        "card {card} is in use by process {owner} (it holds {path}): stop that worker, or name \
         another device"
    )]
    Held {
        /// Number of the card.
        card: u32,
        /// Id of the process that has it.
        owner: String,
        /// The lock's file.
        path: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("the lock {path} of card {card} cannot be taken: {source}")]
    Io {
        /// Number of the card.
        card: u32,
        /// The lock's file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

/// Keeps other workers of this host off some cards, as long as it lives: the
/// system takes the locks back even from a process that was killed.
#[derive(Debug)]
pub struct BoardLock {
    _files: Vec<File>,
}

impl BoardLock {
    /// Where the host whose file system starts at `root` keeps its locks.
    /// Containers that share a card have to share this folder.
    pub fn folder(root: &Path) -> PathBuf {
        let usual = root.join("run/lock");
        let is_writable = fs::metadata(&usual)
            .is_ok_and(|found| found.is_dir() && !found.permissions().readonly());
        if is_writable { usual } else { root.join("tmp") }
    }

    /// Takes the cards of these numbers, all or none.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process, or this one, has one of them.
    pub fn acquire(folder: &Path, cards: &[u32]) -> Result<Self, LockError> {
        let files = cards.iter().map(|card| lock(folder, *card));
        Ok(Self { _files: files.collect::<Result<_, _>>()? })
    }
}

fn lock(folder: &Path, card: u32) -> Result<File, LockError> {
    let path = folder.join(format!("llama-mesh-tenstorrent-{card}.lock"));
    let fail = |source| LockError::Io { card, path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // What cannot be read is no reason to keep the rest back.
            let _ = file.take(MAX_OWNER_BYTES).read_to_string(&mut owner);
            let owner = match owner.trim() {
                "" => "unknown".to_owned(),
                owner => owner.to_owned(),
            };
            return Err(LockError::Held { card, owner, path });
        }
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    // The last owner's id, which may be longer, goes first.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}
