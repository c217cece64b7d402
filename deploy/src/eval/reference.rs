//! Reference tokens: a text's ids, and after each the five that the reference
//! model holds likeliest.
//!
//! Our files are JSON with a version, the fingerprints of what made them, and a
//! checksum. The original's `.refpt` files are read too (`refpt`).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use worker::identity::Identity;

use super::refpt;
use super::score::{TOP, perplexity};

const FORMAT: &str = "llama-mesh reference";
const VERSION: u32 = 1;
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Tokens and what is likeliest after them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reference {
    /// Where it comes from, as far as the file says.
    pub(super) origin: Option<Origin>,
    /// At least two.
    pub(super) tokens: Vec<u32>,
    /// Row `t` predicts token `t + 1`; one row less than tokens, or as many.
    pub(super) top5: Vec<[u32; TOP]>,
    /// Log-probability of token `t + 1`; one less than tokens, or none at all.
    pub(super) next_logprobs: Vec<f64>,
}

/// What made a reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    /// Name of the model.
    pub(super) model: String,
    pub(super) weight_fingerprint: String,
    pub(super) tokenizer_fingerprint: String,
    /// Number formats.
    pub(super) optimizations: String,
    pub(super) device: String,
    pub(super) num_chips: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceFile {
    format: String,
    version: u32,
    origin: Origin,
    tokens: Vec<u32>,
    top5: Vec<[u32; TOP]>,
    next_logprobs: Vec<f64>,
    /// Over the ids of `tokens` and `top5`.
    sha256: String,
}

impl Origin {
    /// Of a model that is loaded.
    pub(super) fn of(identity: &Identity) -> Self {
        Self {
            model: identity.model.name.clone(),
            weight_fingerprint: identity.model.weight_fingerprint.clone(),
            tokenizer_fingerprint: identity.model.tokenizer_fingerprint.clone(),
            optimizations: identity.device.optimizations.clone(),
            device: identity.device.name.clone(),
            num_chips: identity.device.num_chips,
        }
    }
}

impl Reference {
    /// Reads a file of ours or of the original's.
    ///
    /// # Errors
    /// When it is neither, or damaged, by name.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        Self::read_either(path)
            .and_then(Self::checked)
            .with_context(|| format!("cannot use the reference {}", path.display()))
    }

    fn read_either(path: &Path) -> anyhow::Result<Self> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(4).read_to_end(&mut bytes)?;
        if bytes == b"PK\x03\x04" {
            return refpt::read(path);
        }
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "it has more than {MAX_FILE_BYTES} bytes");
        from_json(&bytes)
    }

    /// Whether the parts fit each other.
    fn checked(self) -> anyhow::Result<Self> {
        let (tokens, rows) = (self.tokens.len(), self.top5.len());
        ensure!(tokens >= 2, "it has {tokens} tokens, two are the least");
        ensure!(
            rows == tokens || rows + 1 == tokens,
            "it has {tokens} tokens and {rows} rows of top-5, which must be one less or as many"
        );
        let logprobs = self.next_logprobs.len();
        ensure!(
            logprobs == 0 || logprobs + 1 == tokens,
            "it has {tokens} tokens and {logprobs} log-probabilities, which must be one less"
        );
        Ok(self)
    }

    /// Whether the reference means by its ids what the model means by them.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn check_tokenizer(
        &self,
        fingerprint: &str,
        vocab_size: usize,
    ) -> anyhow::Result<()> {
        if let Some(origin) = &self.origin
            && origin.tokenizer_fingerprint != fingerprint
        {
            bail!(
                "the reference was made with the tokenizer {} (of {}), the model has {fingerprint}: \
                 make a reference for this model with --make-reference",
                origin.tokenizer_fingerprint,
                origin.model,
            );
        }
        let ids = self.tokens.iter().chain(self.top5.iter().flatten());
        if let Some(id) = ids.copied().find(|&id| id as usize >= vocab_size) {
            bail!("the reference has token {id}, the model's vocabulary has {vocab_size}");
        }
        Ok(())
    }

    /// Perplexity of the reference model over the tokens after `positions`.
    pub(super) fn perplexity(&self, positions: std::ops::Range<usize>) -> Option<f64> {
        let end = positions.end.min(self.next_logprobs.len());
        let logprobs = self.next_logprobs.get(positions.start..end)?;
        perplexity(logprobs.iter().sum(), logprobs.len())
    }

    /// Writes a file of ours, under a temporary name first.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let origin = self.origin.clone().context("a reference of unknown origin")?;
        let file = ReferenceFile {
            format: FORMAT.to_owned(),
            version: VERSION,
            origin,
            sha256: checksum(&self.tokens, &self.top5),
            tokens: self.tokens.clone(),
            top5: self.top5.clone(),
            next_logprobs: self.next_logprobs.clone(),
        };
        let mut name = path.file_name().context("the output must name a file")?.to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let write = || -> anyhow::Result<()> {
            let mut out = File::create(&part)?;
            serde_json::to_writer(std::io::BufWriter::new(&mut out), &file)?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            Ok(std::fs::rename(&part, path)?)
        };
        let result = write();
        if result.is_err() {
            let _ = std::fs::remove_file(&part);
        }
        result.with_context(|| format!("cannot write {}", path.display()))
    }
}

fn from_json(bytes: &[u8]) -> anyhow::Result<Reference> {
    /// What says whether the rest can be read.
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let head: Head = serde_json::from_slice(bytes)
        .context("neither a file of --make-reference nor a .refpt file")?;
    ensure!(head.format == FORMAT, "its format is {:?}, must be {FORMAT:?}", head.format);
    ensure!(head.version == VERSION, "its version is {}, must be {VERSION}", head.version);
    let file: ReferenceFile = serde_json::from_slice(bytes)?;
    ensure!(file.sha256 == checksum(&file.tokens, &file.top5), "it is damaged: its sum is wrong");
    let ReferenceFile { origin, tokens, top5, next_logprobs, .. } = file;
    Ok(Reference { origin: Some(origin), tokens, top5, next_logprobs })
}

fn checksum(tokens: &[u32], top5: &[[u32; TOP]]) -> String {
    let mut hash = Sha256::new();
    hash.update((tokens.len() as u64).to_le_bytes());
    for id in tokens.iter().chain(top5.iter().flatten()) {
        hash.update(id.to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
