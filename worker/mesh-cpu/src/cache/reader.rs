//! Weights out of a finished cache: mapped, checked, and never copied.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use kernels::{Format, MappedFile, PackedMatrix, Pool};

use super::layout::{Entry, Identity, Index, PAGE, Piece};
use super::{Placement, Unusable, WeightKey, checksum};
use crate::weights::{Storage, Weight};

/// A cache whose index is what was written for this model. Its weights are
/// checked one by one, as they are taken.
#[derive(Debug)]
pub(crate) struct Reader {
    file: Arc<MappedFile>,
    entries: Vec<Entry>,
    next: usize,
    num_chips: usize,
}

impl Reader {
    pub(crate) fn open(path: &Path, wanted: &Identity) -> Result<Self, Unusable> {
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Unusable::Absent,
            _ => Unusable::Damaged(format!("it cannot be read: {error}")),
        };
        // Before it is opened: opening a pipe waits for its other end.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(Unusable::NoFile);
        }
        let file = File::open(path).map_err(unreadable)?;
        let file = Arc::new(MappedFile::new(&file).map_err(unreadable)?);
        let Index { entries, identity } = Index::of_file(file.bytes(), wanted)?;
        Ok(Self { file, entries, next: 0, num_chips: identity.num_chips as usize })
    }

    /// The next weight, which must be `key`'s; or what is wrong with it.
    pub(crate) fn take(&mut self, pool: &Pool, key: &WeightKey) -> Result<Weight, String> {
        let name = &key.name;
        let entry = self.entries.get(self.next).ok_or_else(|| format!("{name} is not in it"))?;
        if entry.name != *name {
            return Err(format!("it holds {} in the place of {name}", entry.name));
        }
        let wanted = if key.placement == Placement::Shards { self.num_chips } else { 1 };
        let first = match &entry.pieces[..] {
            [first, ..] if entry.pieces.len() == wanted => first,
            pieces => return Err(format!("{name} has {} pieces, not {wanted}", pieces.len())),
        };
        for piece in &entry.pieces {
            self.check(pool, piece, key.format).map_err(|how| format!("{name} {how}"))?;
        }
        let unfit = || format!("{name} has not the length of its shape");
        let storage = match key.placement {
            Placement::Gain => Storage::Gain(self.gain(first)),
            Placement::Shards => {
                let shards = entry.pieces.iter().map(|piece| self.matrix(piece));
                Storage::Shards(shards.collect::<Option<_>>().ok_or_else(unfit)?)
            }
        };
        self.next += 1;
        Ok(Weight(storage))
    }

    /// What has been taken so far, to be carried over to another file.
    pub(crate) fn taken(&self) -> &[Entry] {
        &self.entries[..self.next]
    }

    /// The bytes of a piece, which the index has inside the file.
    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.file.bytes()[piece.offset as usize..][..piece.num_bytes as usize]
    }

    fn check(&self, pool: &Pool, piece: &Piece, format: Format) -> Result<(), &'static str> {
        if piece.format != format {
            return Err("has another number format");
        }
        if checksum::of(pool, self.bytes(piece)) != piece.checksum {
            return Err("is not what was written");
        }
        // Up to the next page there is nothing.
        let end = (piece.offset + piece.num_bytes) as usize;
        let gap = &self.file.bytes()[end..end.next_multiple_of(PAGE as usize)];
        if gap.iter().any(|&byte| byte != 0) {
            return Err("is followed by bytes that nobody wrote");
        }
        Ok(())
    }

    fn matrix(&self, piece: &Piece) -> Option<PackedMatrix> {
        let shape = [usize::try_from(piece.n).ok()?, usize::try_from(piece.k).ok()?];
        let start = piece.offset as usize;
        let range = start..start + piece.num_bytes as usize;
        PackedMatrix::from_mapped(piece.format, shape, &self.file, range)
    }

    fn gain(&self, piece: &Piece) -> Vec<f32> {
        let (values, _) = self.bytes(piece).as_chunks();
        values.iter().map(|value| f32::from_le_bytes(*value)).collect()
    }
}
