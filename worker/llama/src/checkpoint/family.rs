//! Which member of the Llama 3 family a path names.
//!
//! People tell the models apart by their directories' names. A name is only a
//! hint, but one that contradicts the weights means a mistake.

use std::path::Path;

use crate::config::Llama3Size;

/// What the directories of the family have in their names.
const NAMES: [(&str, Llama3Size); 5] = [
    ("3.2-1b", Llama3Size::B1),
    ("3.2-3b", Llama3Size::B3),
    ("3.1-8b", Llama3Size::B8),
    ("3.2-11b", Llama3Size::B11),
    ("3.1-70b", Llama3Size::B70),
];

/// What to do about a path that names another model than it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NameCheck {
    /// Refuse it.
    #[default]
    Enforce,
    /// Believe the files.
    Ignore,
}

/// The member that `path` names. The whole path is searched, since repacked
/// weights may lie in a directory below the named one; the innermost name wins.
pub(super) fn named_in(path: &Path) -> Option<Llama3Size> {
    let in_path = |path: &Path| {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().to_lowercase()).collect();
        parts.iter().rev().find_map(|part| named(part))
    };
    // The path as given first: `$LLAMA_DIR` may be a link with a telling name.
    in_path(path).or_else(|| in_path(&path.canonicalize().ok()?))
}

/// The last name in a part of a path, in lower case.
fn named(part: &str) -> Option<Llama3Size> {
    let found = NAMES.iter().flat_map(|&(name, size)| {
        part.match_indices(name).map(move |(at, name)| (at, name.len(), size))
    });
    // `13.1-8b` or `3.2-3bit` is another name.
    let whole = found.filter(|&(at, len, _)| {
        !part[..at].ends_with(|c: char| c.is_ascii_digit() || c == '.')
            && !part[at + len..].starts_with(|c: char| c.is_alphanumeric())
    });
    whole.max_by_key(|&(at, ..)| at).map(|(.., size)| size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_anywhere_in_a_path() {
        let cases = [
            ("/models/Llama3.2-1B-Instruct", Some(Llama3Size::B1)),
            ("/models/Llama-3.2-3B/original", Some(Llama3Size::B3)),
            ("Meta-Llama-3.1-8B-Instruct", Some(Llama3Size::B8)),
            ("/models/LLAMA3.2-11b-vision", Some(Llama3Size::B11)),
            ("/data/3.1-70B-repacked/x", Some(Llama3Size::B70)),
            ("/Llama3.1-70B/Llama3.1-8B", Some(Llama3Size::B8)),
            ("/Llama3.1-70B-to-Llama3.1-8B", Some(Llama3Size::B8)),
            ("/Llama3.1-405B", None),
            ("/Llama3.3-70B", None),
            ("/Meta-Llama-3-8B", None),
            ("/gemma-13.1-8b", None),
            ("/v1.3.1-8b", None),
            ("/Llama3.2-3Bit", None),
            ("/repacked", None),
            ("", None),
        ];
        for (path, size) in cases {
            assert_eq!(named_in(Path::new(path)), size, "{path}");
        }
    }

    #[test]
    fn a_link_may_name_what_its_target_does_not_and_the_reverse() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        let named = directory.path().join("Llama3.2-1B");
        std::fs::create_dir(&plain).unwrap();
        std::os::unix::fs::symlink(&plain, &named).unwrap();
        assert_eq!(named_in(&named), Some(Llama3Size::B1));
        assert_eq!(named_in(&plain), None);
        let target = directory.path().join("Llama3.2-3B");
        let link = directory.path().join("link");
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(named_in(&link), Some(Llama3Size::B3));
    }
}
