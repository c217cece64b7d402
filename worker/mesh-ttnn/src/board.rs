//! Which Tenstorrent cards this host has, without opening one.
//!
//! The kernel driver says it in `/dev` and `/sys`; nothing of `ttnn` is touched,
//! which would take the cards.

mod lock;

use std::fmt;
use std::fs;
use std::path::Path;

use thiserror::Error;

pub use self::lock::{BoardLock, LockError};

/// Tenstorrent's number on the PCI bus.
const VENDOR: &str = "0x1e52";
/// A Wormhole chip's number on the PCI bus.
const WORMHOLE: &str = "0x401e";
/// Cards of a T3000.
const T3K_CARDS: usize = 4;

/// A set of cards that a mesh is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BoardKind {
    /// One card with one chip.
    N150,
    /// One card with two chips.
    N300,
    /// Four cards with two chips each.
    T3k,
}

/// The cards of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// What they are together.
    pub kind: BoardKind,
    /// Their numbers in `/dev/tenstorrent`, ascending.
    pub cards: Vec<u32>,
}

/// There are cards, and they are no board that we know.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BoardError {
    /// The driver does not say what a card is.
    #[error(
        "/dev/tenstorrent/{card} is {found}, neither n150 nor n300: name the device, or update \
         the kernel driver and the card's firmware if it is one of them"
    )]
    UnknownCard {
        /// Number of the card.
        card: u32,
        /// What the driver says of it.
        found: String,
    },
    /// No mesh is made of these.
    #[error(
        "this host has {0}; a device is one n150, one n300 or four n300 together: name the device"
    )]
    Mixed(String),
}

impl BoardKind {
    /// Chips of all cards together.
    pub fn num_chips(self) -> usize {
        match self {
            Self::N150 => 1,
            Self::N300 => 2,
            Self::T3k => 8,
        }
    }
}

impl fmt::Display for BoardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::N150 => "N150",
            Self::N300 => "N300",
            Self::T3k => "T3K",
        })
    }
}

/// The board of the host whose file system starts at `root`, `/` outside of
/// tests; None without a card.
///
/// # Errors
/// [`BoardError`] where the cards are none of the boards.
pub fn detect_board(root: &Path) -> Result<Option<Board>, BoardError> {
    let cards = cards(root);
    let kinds: Vec<_> =
        cards.iter().map(|card| card_kind(root, *card)).collect::<Result<_, _>>()?;
    let kind = match kinds[..] {
        [] => return Ok(None),
        [kind] => kind,
        _ if kinds == [BoardKind::N300; T3K_CARDS] => BoardKind::T3k,
        _ => {
            let count = |kind: BoardKind| kinds.iter().filter(|found| **found == kind).count();
            let (n150, n300) = (count(BoardKind::N150), count(BoardKind::N300));
            return Err(BoardError::Mixed(format!("{n150} n150 and {n300} n300 cards")));
        }
    };
    Ok(Some(Board { kind, cards }))
}

/// Numbers of the cards that the host has, or this container was given.
pub fn cards(root: &Path) -> Vec<u32> {
    let entries = fs::read_dir(root.join("dev/tenstorrent")).into_iter().flatten();
    let mut cards: Vec<_> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    cards.sort_unstable();
    cards
}

/// Processes that have one of `cards` open, as far as this one may see: the
/// package waits for them without a word.
pub fn holders(root: &Path, cards: &[u32]) -> Vec<u32> {
    let devices: Vec<_> = cards.iter().map(|card| format!("/dev/tenstorrent/{card}")).collect();
    let holds = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| devices.iter().any(|device| target == Path::new(device)))
    };
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let mut holders: Vec<_> = processes
        .filter(|process| holds(&process.path()))
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect();
    holders.sort_unstable();
    holders
}

fn card_kind(root: &Path, card: u32) -> Result<BoardKind, BoardError> {
    let folder = root.join(format!("sys/class/tenstorrent/tenstorrent!{card}"));
    let read = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
        text.trim().to_lowercase()
    };
    let (vendor, device) = (read("device/vendor"), read("device/device"));
    let unknown = |found: String| BoardError::UnknownCard { card, found };
    if !vendor.is_empty() && (vendor.as_str(), device.as_str()) != (VENDOR, WORMHOLE) {
        return Err(unknown(format!("PCI device {vendor}:{device}")));
    }
    match read("tt_card_type").as_str() {
        "n150" => Ok(BoardKind::N150),
        "n300" => Ok(BoardKind::N300),
        "" => Err(unknown("a card of unknown type".to_owned())),
        found => Err(unknown(format!("of type {found:?}"))),
    }
}

#[cfg(test)]
mod tests;
