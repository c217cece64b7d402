//! The right to write a file, which one process has at a time.
//!
//! A cache is written under a temporary name, which is always the same and is
//! locked by who writes it. So what an interrupted start left behind is known by
//! its missing lock, and two starts at once do not write the same bytes twice.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How often another start may finish or give up between our opening the file
/// and our locking it. Once is rare.
const ATTEMPTS: usize = 4;

/// Opens `path`, emptied and locked, whatever an interrupted start left there;
/// `None` while another process has it.
pub(crate) fn claim(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        // Not truncated before it is ours.
        options.read(true).write(true).create(true).truncate(false);
        let Some(file) = lock(path, &options)? else { return Ok(None) };
        if is_at(&file, path)? {
            file.set_len(0)?;
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Removes `path` if an interrupted start left it there.
pub(crate) fn remove_orphan(path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return Ok(());
    }
    if let Some(file) = lock(path, OpenOptions::new().read(true).write(true))?
        && is_at(&file, path)?
    {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn lock(path: &Path, options: &OpenOptions) -> io::Result<Option<File>> {
    // Before it is opened: opening a pipe waits for its other end.
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let message = format!("{} is not a regular file", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the file is still the one of that name. Only who has locked it may
/// rename or remove it, so that the answer stays true while it is ours.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time_and_remains_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.tmp");
        fs::write(&path, "left by an interrupted start").unwrap();
        let ours = claim(&path).unwrap().expect("nobody has it");
        assert_eq!(ours.metadata().unwrap().len(), 0);
        assert!(claim(&path).unwrap().is_none());
        remove_orphan(&path).unwrap();
        assert!(path.exists(), "it is in use");
        drop(ours);
        assert!(claim(&path).unwrap().is_some());
        remove_orphan(&path).unwrap();
        assert!(!path.exists());
        remove_orphan(&path).unwrap();
    }

    #[test]
    fn a_file_that_was_renamed_meanwhile_is_not_the_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, renamed) = (dir.path().join("w.tmp"), dir.path().join("w"));
        let file = claim(&path).unwrap().unwrap();
        assert!(is_at(&file, &path).unwrap());
        fs::rename(&path, &renamed).unwrap();
        assert!(!is_at(&file, &path).unwrap());
        let other = claim(&path).unwrap().expect("a new one");
        assert!(!is_at(&file, &path).unwrap() && is_at(&other, &path).unwrap());
    }

    #[test]
    fn what_is_no_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.tmp");
        fs::create_dir(&path).unwrap();
        for error in [claim(&path).unwrap_err(), remove_orphan(&path).unwrap_err()] {
            assert!(error.to_string().contains("w.tmp is not a regular file"), "{error}");
        }
        let target = dir.path().join("precious");
        fs::write(&target, "kept").unwrap();
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(claim(&path).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
