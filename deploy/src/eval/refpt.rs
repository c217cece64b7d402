//! The original's reference files: a dictionary saved by torch with
//! `reference_tokens`, `[1, T]`, and `top5_tokens`, `[T − 1 or T, 5]` or a list
//! of such pieces.
//!
//! They do not say which model or tokenizer made them.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use llama::pth::{PthFile, PthTensor, Value};

use super::reference::Reference;
use super::score::TOP;

/// Reads a `.refpt` file.
///
/// # Errors
/// When it is damaged, or lacks something.
pub(super) fn read(path: &Path) -> anyhow::Result<Reference> {
    let file = PthFile::open(path)?;
    let tokens = ids(&file, "reference_tokens", None)?;
    let top5 = ids(&file, "top5_tokens", Some(TOP as u64))?;
    let (rows, _) = top5.as_chunks::<TOP>();
    file.verify_unchanged()?;
    Ok(Reference { origin: None, tokens, top5: rows.to_vec(), next_logprobs: Vec::new() })
}

/// The integers of a tensor, or of a list of tensors one after another; of so
/// many columns, where that is known.
fn ids(file: &PthFile, name: &str, columns: Option<u64>) -> anyhow::Result<Vec<u32>> {
    let value = file.value().get(name);
    let value = value.with_context(|| format!("it has no {name}, so it is no .refpt file"))?;
    let pieces: Vec<&PthTensor> = match value {
        Value::Tensor(tensor) => vec![tensor],
        Value::List(values) => {
            let tensors = values.iter().map(Value::as_tensor).collect::<Option<_>>();
            tensors.with_context(|| format!("{name} is a list of other things than tensors"))?
        }
        _ => bail!("{name} is neither a tensor nor a list of tensors"),
    };
    let mut ids = Vec::new();
    for piece in pieces {
        let shape = &piece.shape;
        if let Some(columns) = columns {
            let fits = shape.last() == Some(&columns);
            ensure!(fits, "{name} has the shape {shape:?}, whose rows must be of {columns} ids");
        }
        for id in file.read_integers(piece).with_context(|| name.to_owned())? {
            ids.push(u32::try_from(id).with_context(|| format!("{name} has the id {id}"))?);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `tests/golden/make_refpt.py` saved by torch.
    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/refpt").join(name)
    }

    /// Ids by the script's formula.
    fn expected(rows: u32) -> (Vec<u32>, Vec<[u32; TOP]>) {
        let tokens = (0..6).map(|t| 128_000 + t * t).collect();
        let row = |t: u32| [0, 1, 2, 3, 4].map(|k| 1000 * t + 7 * k);
        (tokens, (0..rows).map(row).collect())
    }

    #[test]
    fn every_form_that_the_original_wrote_is_read() {
        for (name, rows) in [("tensor.refpt", 5), ("full.refpt", 6), ("chunks.refpt", 6)] {
            let reference = Reference::read(&golden(name)).unwrap();
            let (tokens, top5) = expected(rows);
            assert_eq!((reference.tokens, reference.top5), (tokens, top5), "{name}");
            assert_eq!((reference.origin, reference.next_logprobs), (None, vec![]));
        }
    }

    #[test]
    fn other_files_of_torch_are_refused() {
        let cases = [
            ("missing.refpt", "no top5_tokens"),
            ("negative.refpt", "the id -1"),
            ("ragged.refpt", "[6, 4]"),
            ("floats.refpt", "top5_tokens"),
        ];
        for (name, expected) in cases {
            let error = format!("{:#}", Reference::read(&golden(name)).unwrap_err());
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
    }
}
