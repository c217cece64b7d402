//! Finding a model's files, and naming the model and its tokenizer.
//!
//! Both services are given the same path: the worker for the weights, the
//! gateway for the tokenizer. The fingerprint made here is how they find out
//! that they were not. Weights are the worker's business and are not looked
//! at, so a gateway needs only the small files.
//!
//! Everything here blocks on the disk; call it off the async threads.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use gguf::{Gguf, GgufError};
use sha2::{Digest as _, Sha256};

/// First guess at the size of a GGUF file's metadata, in bytes.
const FIRST_PREFIX_BYTES: u64 = 4 << 20;

/// The files of one model, in one of the layouts that are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// One GGUF file with weights, tokenizer and template.
    Gguf(PathBuf),
    /// A Hugging Face directory: `config.json`, `tokenizer.json`, safetensors.
    HuggingFace(PathBuf),
    /// A directory as Meta ships it: `params.json`, `tokenizer.model`, `.pth`.
    Meta(PathBuf),
}

/// Why a path is no model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Nothing is there, or it cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file of another kind.
    #[error(
        "{path} is not a model: a file must be a .gguf; a directory may also hold a Hugging Face or a Meta checkpoint"
    )]
    NotAModel {
        /// The file.
        path: PathBuf,
    },
    /// A directory that lacks what would make it a model.
    #[error("{path} holds no complete model: {missing}")]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// Which file is missing for which layout.
        missing: String,
    },
    /// A directory with several GGUF files.
    #[error("{path} holds {count} .gguf files; name one of them")]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// The GGUF file is damaged.
    #[error("{path}: {source}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
}

impl ModelFiles {
    /// Recognises the layout at `path`: a `.gguf` file, or a directory that
    /// holds a Hugging Face or a Meta checkpoint, or a single `.gguf` file.
    ///
    /// # Errors
    /// [`ModelError`] names the files that are missing.
    pub fn locate(path: &Path) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(path).map_err(|source| io(path, source))?;
        if metadata.is_dir() {
            return Self::locate_in(path);
        }
        if !is_gguf(path) {
            return Err(ModelError::NotAModel { path: path.to_owned() });
        }
        Ok(Self::Gguf(path.to_owned()))
    }

    fn locate_in(dir: &Path) -> Result<Self, ModelError> {
        let lacks = |name: &&str| !dir.join(name).is_file();
        let layouts = [
            ("Hugging Face", ["config.json", "tokenizer.json"]),
            ("Meta", ["params.json", "tokenizer.model"]),
        ];
        let mut missing = Vec::new();
        for (layout, needed) in layouts {
            let lacking: Vec<&str> = needed.into_iter().filter(lacks).collect();
            if lacking.is_empty() {
                return Ok(match layout {
                    "Meta" => Self::Meta(dir.to_owned()),
                    _ => Self::HuggingFace(dir.to_owned()),
                });
            }
            missing.push(format!("a {layout} checkpoint needs {}", lacking.join(" and ")));
        }
        let mut ggufs = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|source| io(dir, source))? {
            let path = entry.map_err(|source| io(dir, source))?.path();
            if is_gguf(&path) && path.is_file() {
                ggufs.push(path);
            }
        }
        match (ggufs.pop(), ggufs.len()) {
            (Some(file), 0) => Ok(Self::Gguf(file)),
            (Some(_), others) => {
                Err(ModelError::Ambiguous { path: dir.to_owned(), count: others + 1 })
            }
            (None, _) => {
                missing.push("or there may be one .gguf file".to_owned());
                Err(ModelError::Incomplete { path: dir.to_owned(), missing: missing.join("; ") })
            }
        }
    }

    /// The file, or the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Gguf(path) | Self::HuggingFace(path) | Self::Meta(path) => path,
        }
    }

    /// The name that clients use in `model`: the directory's own, or the file's
    /// without its quantization (`Llama-3.2-1B.Q4_K_M.gguf` is `Llama-3.2-1B`),
    /// since a GGUF's `general.name` is whatever its maker left there. Spaces
    /// become hyphens.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.own_name();
        let name = match self {
            Self::Gguf(_) => without_quantization(&name),
            Self::HuggingFace(_) | Self::Meta(_) => &name,
        };
        name.split_whitespace().collect::<Vec<_>>().join("-")
    }

    /// The start of a GGUF file, for [`Gguf::parse_metadata`]: long enough to
    /// hold its metadata, and much shorter than a model.
    ///
    /// # Errors
    /// The file cannot be read, or its metadata is damaged.
    pub fn gguf_metadata_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
        metadata_prefix(path)
    }

    fn own_name(&self) -> String {
        // "." and ".." have names too.
        let path = self.path().canonicalize().unwrap_or_else(|_| self.path().to_owned());
        let name = match self {
            Self::Gguf(_) => path.file_stem(),
            // Where a repository of Hugging Face keeps Meta's own files.
            Self::Meta(_) if path.ends_with("original") => path.parent().and_then(Path::file_name),
            Self::HuggingFace(_) | Self::Meta(_) => path.file_name(),
        };
        name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// SHA-256, in hex, over everything that turns text into ids and back.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn tokenizer_fingerprint(&self) -> Result<String, ModelError> {
        let mut hash = Parts::default();
        match self {
            Self::Gguf(path) => {
                let prefix = metadata_prefix(path)?;
                let metadata = Gguf::parse_metadata(&prefix).map_err(|error| bad(path, error))?;
                for entry in metadata.entries_with_prefix("tokenizer.") {
                    hash.add(entry.key, entry.value);
                }
            }
            Self::HuggingFace(dir) => {
                hash.add_file(dir, "tokenizer.json")?;
                hash.add_file_if_there(dir, "tokenizer_config.json")?;
                hash.add_file_if_there(dir, "chat_template.jinja")?;
            }
            Self::Meta(dir) => hash.add_file(dir, "tokenizer.model")?,
        }
        Ok(hash.finish())
    }
}

/// A hash over named parts, each with its length, so that no two lists of
/// parts look alike.
#[derive(Default)]
struct Parts(Sha256);

impl Parts {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.update((name.len() as u64).to_le_bytes());
        self.0.update(name);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn add_file(&mut self, dir: &Path, name: &str) -> Result<(), ModelError> {
        let path = dir.join(name);
        let bytes = std::fs::read(&path).map_err(|source| io(&path, source))?;
        self.add(name, &bytes);
        Ok(())
    }

    fn add_file_if_there(&mut self, dir: &Path, name: &str) -> Result<(), ModelError> {
        match self.add_file(dir, name) {
            Err(ModelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            result => result,
        }
    }

    fn finish(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string cannot fail");
            hex
        })
    }
}

/// The start of the file, long enough to hold its metadata: a model is
/// gigabytes, its metadata a few megabytes.
fn metadata_prefix(path: &Path) -> Result<Vec<u8>, ModelError> {
    let mut file = File::open(path).map_err(|source| io(path, source))?;
    let mut prefix = Vec::new();
    let mut wanted = FIRST_PREFIX_BYTES;
    loop {
        let missing = wanted - prefix.len() as u64;
        let read = file.by_ref().take(missing).read_to_end(&mut prefix);
        let at_end = (read.map_err(|source| io(path, source))? as u64) < missing;
        match Gguf::parse_metadata(&prefix) {
            Ok(_) => return Ok(prefix),
            Err(GgufError::Truncated { .. }) if !at_end => wanted *= 2,
            Err(error) => return Err(bad(path, error)),
        }
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn io(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io { path: path.to_owned(), source }
}

fn bad(path: &Path, source: GgufError) -> ModelError {
    ModelError::Gguf { path: path.to_owned(), source }
}

/// Cuts `.Q4_1`, `-Q4_K_M`, `.f16` and the like off a file's stem.
fn without_quantization(stem: &str) -> &str {
    let Some((name, last)) = stem.rsplit_once(['.', '-']) else { return stem };
    let last = last.to_ascii_uppercase();
    let quantized = last.strip_prefix('I').unwrap_or(&last).strip_prefix('Q');
    let is_quantization = quantized
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        || ["F16", "F32", "BF16"].contains(&&*last);
    if is_quantization && !name.is_empty() { name } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    /// Metadata of strings only, and a tensor directory that is not there.
    fn gguf_bytes(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        for (key, value) in entries {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(8_u32.to_le_bytes());
            bytes.extend((value.len() as u64).to_le_bytes());
            bytes.extend(value.as_bytes());
        }
        bytes
    }

    #[test]
    fn layouts_are_recognised() {
        let hugging_face = dir_with(&[("config.json", b"{}"), ("tokenizer.json", b"{}")]);
        let found = ModelFiles::locate(hugging_face.path()).unwrap();
        assert_eq!(found, ModelFiles::HuggingFace(hugging_face.path().to_owned()));
        let meta = dir_with(&[("params.json", b"{}"), ("tokenizer.model", b"")]);
        let found = ModelFiles::locate(meta.path()).unwrap();
        assert_eq!(found, ModelFiles::Meta(meta.path().to_owned()));
        let one = dir_with(&[("a.gguf", b"GGUF")]);
        let file = one.path().join("a.gguf");
        for path in [one.path(), &file] {
            assert_eq!(ModelFiles::locate(path).unwrap(), ModelFiles::Gguf(file.clone()));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let check = |path: &Path, wanted: &[&str]| {
            let text = ModelFiles::locate(path).unwrap_err().to_string();
            for wanted in wanted {
                assert!(text.contains(wanted), "{text:?} does not name {wanted:?}");
            }
        };
        check(Path::new("/no/such/model"), &["/no/such/model"]);
        let meta = dir_with(&[("params.json", b"{}")]);
        check(meta.path(), &["needs tokenizer.model", "config.json and tokenizer.json", ".gguf"]);
        let two = dir_with(&[("a.gguf", b""), ("b.gguf", b"")]);
        check(two.path(), &["2 .gguf files"]);
        let other = dir_with(&[("a.bin", b"")]);
        check(&other.path().join("a.bin"), &["a.bin", ".gguf"]);
    }

    #[test]
    fn a_gguf_is_fingerprinted_by_its_tokenizer_alone() {
        let long = "x".repeat(FIRST_PREFIX_BYTES as usize + 1);
        let fingerprint = |name: &str, model: &str, tokens: &str| {
            let bytes = gguf_bytes(&[
                ("general.name", name),
                ("other", &long),
                ("tokenizer.ggml.model", model),
                ("tokenizer.ggml.tokens", tokens),
            ]);
            let dir = dir_with(&[("file-q4.gguf", &bytes)]);
            ModelFiles::locate(dir.path()).unwrap().tokenizer_fingerprint().unwrap()
        };
        let expected = fingerprint("Smol LM", "gpt2", "ab");
        assert_eq!(expected.len(), 64);
        assert_eq!(fingerprint(" ", "gpt2", "ab"), expected);
        assert_ne!(fingerprint("Smol LM", "gpt2a", "b"), expected);
    }

    #[test]
    fn a_file_is_named_without_its_quantization() {
        let cases = [
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
            ("my model.IQ3_XS.gguf", "my-model"),
            ("tiny-f16.gguf", "tiny"),
            ("Llama-3.2.gguf", "Llama-3.2"),
            ("Q4_0.gguf", "Q4_0"),
        ];
        for (file, name) in cases {
            let dir = dir_with(&[(file, b"")]);
            assert_eq!(ModelFiles::locate(dir.path()).unwrap().name(), name, "{file}");
        }
    }

    #[test]
    fn metas_files_in_another_repository_have_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (path, name) in [
            ("Llama-3.2-1B/original", "Llama-3.2-1B"),
            ("Llama3.2-1B", "Llama3.2-1B"),
            ("originals", "originals"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("params.json"), "{}").unwrap();
            std::fs::write(path.join("tokenizer.model"), "").unwrap();
            assert_eq!(ModelFiles::locate(&path).unwrap().name(), name);
        }
    }

    #[test]
    fn damaged_and_truncated_ggufs_are_refused() {
        let whole = gguf_bytes(&[("general.name", "x")]);
        for bytes in [&whole[..whole.len() - 1], b"GGUF", b"", b"PK\x03\x04........"] {
            let dir = dir_with(&[("a.gguf", bytes)]);
            let files = ModelFiles::locate(dir.path()).unwrap();
            assert!(matches!(files.tokenizer_fingerprint(), Err(ModelError::Gguf { .. })));
        }
    }

    #[test]
    fn every_file_that_shapes_text_counts() {
        let base: Vec<(&str, &[u8])> = vec![("config.json", b"{}"), ("tokenizer.json", b"{}")];
        let fingerprint = |files: &[(&str, &[u8])]| {
            let dir = dir_with(files);
            ModelFiles::locate(dir.path()).unwrap().tokenizer_fingerprint().unwrap()
        };
        let with = |extra: (&'static str, &'static [u8])| {
            let mut files = base.clone();
            files.push(extra);
            fingerprint(&files)
        };
        let plain = fingerprint(&base);
        assert_ne!(with(("chat_template.jinja", b"x")), plain);
        assert_ne!(with(("tokenizer_config.json", b"x")), plain);
        assert_ne!(with(("tokenizer_config.json", b"x")), with(("chat_template.jinja", b"x")));
        assert_eq!(with(("README.md", b"x")), plain);
    }
}
