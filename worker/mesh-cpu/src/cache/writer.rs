//! A cache that is being written, beside where it will be.
//!
//! Nothing takes it for a cache before it is complete and on the disk: it has
//! another name, and no header, until then.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kernels::{Format, Pool};
use xxhash_rust::xxh3::xxh3_64;

use super::checksum::{self, CHUNK_BYTES};
use super::claim;
use super::layout::{self, Entry, Identity, Index, PAGE, Piece};
use super::reader::Reader;
use crate::fan_out;
use crate::weights::{Storage, Weight};

/// Writes weights as they are packed, from where they lie in memory. Dropped
/// before it is finished, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    unfinished_path: PathBuf,
    /// Locked, so that others see that it is in use.
    file: File,
    entries: Vec<Entry>,
    /// Bytes so far.
    end: u64,
    is_finished: bool,
}

/// The name under which the cache `path` is written.
pub(crate) fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

impl Writer {
    /// Begins the file that will be `path`; `None` while another process does.
    pub(crate) fn begin(path: &Path) -> io::Result<Option<Self>> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let unfinished_path = unfinished_path(path);
        let path = path.to_owned();
        Ok(claim::claim(&unfinished_path)?.map(|file| Self {
            path,
            unfinished_path,
            file,
            entries: Vec::new(),
            end: PAGE,
            is_finished: false,
        }))
    }

    /// Adds a weight.
    pub(crate) fn append(&mut self, pool: &Pool, name: &str, weight: &Weight) -> io::Result<()> {
        let pieces = match &weight.0 {
            Storage::Gain(gain) => {
                let bytes: Vec<u8> = gain.iter().flat_map(|value| value.to_le_bytes()).collect();
                vec![self.write(pool, (Format::F32, [1, gain.len()]), &bytes)?]
            }
            Storage::Shards(shards) => shards
                .iter()
                .map(|shard| {
                    let kind = (shard.format(), [shard.n(), shard.k()]);
                    self.write(pool, kind, shard.packed_bytes())
                })
                .collect::<io::Result<_>>()?,
        };
        self.entries.push(Entry { name: name.to_owned(), pieces });
        Ok(())
    }

    /// Adds what was taken from another cache, of which a later weight turned
    /// out to be damaged.
    pub(crate) fn carry_over(&mut self, pool: &Pool, reader: &Reader) -> io::Result<()> {
        for Entry { name, pieces } in reader.taken() {
            let mut written = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let kind = (piece.format, [piece.n as usize, piece.k as usize]);
                let copy = self.write(pool, kind, reader.bytes(piece))?;
                if copy.checksum != piece.checksum {
                    return Err(io::Error::other(format!("{name} changed while it was copied")));
                }
                written.push(copy);
            }
            self.entries.push(Entry { name: name.clone(), pieces: written });
        }
        Ok(())
    }

    /// Completes the file, waits until the disk has it, and gives it its name.
    /// Returns its size.
    pub(crate) fn finish(mut self, identity: Identity) -> io::Result<u64> {
        let index = Index { identity, entries: std::mem::take(&mut self.entries) }.encode();
        let index_offset = layout::next_page(self.end);
        self.file.write_all_at(&index, index_offset)?;
        self.file.write_all_at(&layout::encode_header(index_offset, &index), 0)?;
        self.file.sync_all()?;
        fs::rename(&self.unfinished_path, &self.path)?;
        self.is_finished = true;
        // It is there, and complete; that its name outlives a power cut is
        // worth trying for, and no reason to fail.
        if let Some(parent) = self.path.parent()
            && let Ok(directory) = File::open(parent)
        {
            let _ = directory.sync_all();
        }
        Ok(index_offset + index.len() as u64)
    }

    /// Makes every later write fail.
    #[cfg(test)]
    pub(crate) fn refuse_writes(&mut self) {
        self.file = File::open(&self.unfinished_path).expect("it was made");
    }

    /// Writes one piece, in chunks over the pool.
    fn write(
        &mut self,
        pool: &Pool,
        (format, [n, k]): (Format, [usize; 2]),
        bytes: &[u8],
    ) -> io::Result<Piece> {
        let (file, offset) = (&self.file, layout::next_page(self.end));
        let mut results: Vec<io::Result<u64>> = Vec::new();
        results.resize_with(bytes.len().div_ceil(CHUNK_BYTES), || Ok(0));
        let offsets = (offset..).step_by(CHUNK_BYTES);
        let tasks = bytes.chunks(CHUNK_BYTES).zip(offsets).zip(&mut results);
        fan_out::for_each(pool, tasks.collect(), |((chunk, offset), result)| {
            *result = file.write_all_at(chunk, offset).map(|()| xxh3_64(chunk));
        });
        let sums = results.into_iter().collect::<io::Result<Vec<_>>>()?;
        let num_bytes = bytes.len() as u64;
        self.end = offset + num_bytes;
        let (n, k, checksum) = (n as u64, k as u64, checksum::of_chunks(&sums));
        Ok(Piece { format, n, k, offset, num_bytes, checksum })
    }
}

impl Drop for Writer {
    /// Takes away what was not finished, while it is still locked.
    fn drop(&mut self) {
        // Of what is finished the name may be another writer's by now.
        if !self.is_finished {
            // What stays is taken over by the next start.
            let _ = fs::remove_file(&self.unfinished_path);
        }
    }
}
