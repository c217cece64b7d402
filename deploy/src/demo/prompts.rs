//! Prompt files: ours, which come with the program, and users' own.
//!
//! The format is the original's: a JSON array of objects with `prompt`, and
//! optionally `context`, a text that the prompt is about, and `max_length`, how
//! many characters of it are used. A context is a local file; nothing is fetched.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::cli::DemoMode;

/// Largest prompt file or context that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

const INSTRUCT: &str = include_str!("../../prompts/instruct.json");
const GENERAL: &str = include_str!("../../prompts/general.json");
const LONG: &str = include_str!("../../prompts/long.json");
/// The context that `long.json` names.
pub(crate) const LONG_TEXT: &str = include_str!("../../prompts/long.txt");

/// One prompt, its context read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// What is asked, or how a text begins.
    pub(crate) prompt: String,
    /// What it is about.
    pub(crate) context: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    prompt: String,
    #[serde(default)]
    context: Option<String>,
    #[serde(default)]
    max_length: Option<usize>,
}

/// The prompts that come with the program.
///
/// # Errors
/// None with the files that the tests have checked.
pub(crate) fn built_in(mode: DemoMode, long: bool) -> anyhow::Result<Vec<Prompt>> {
    let json = match (long, mode) {
        (true, _) => LONG,
        (false, DemoMode::Instruct) => INSTRUCT,
        (false, DemoMode::General) => GENERAL,
    };
    parse(json, &|name| match name {
        "long.txt" => Ok(LONG_TEXT.to_owned()),
        _ => bail!("no such text comes with the program"),
    })
}

/// The prompts of a file; contexts are named relative to it.
///
/// # Errors
/// When the file or a context cannot be read or is not what it should be, by
/// name and number.
pub(crate) fn from_file(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let directory = path.parent().unwrap_or(Path::new("."));
    read_text(path)
        .and_then(|json| parse(&json, &|name| read_text(&directory.join(name))))
        .with_context(|| format!("cannot use the prompts of {}", path.display()))
}

/// Reads a text of bounded size.
///
/// # Errors
/// When it cannot be read, is too large, or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", path.display()))?;
    let limit = MAX_FILE_BYTES;
    ensure!(text.len() as u64 <= limit, "{} has more than {limit} bytes", path.display());
    Ok(text)
}

fn parse(json: &str, read: &dyn Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<Vec<Prompt>> {
    let entries: Vec<Entry> = serde_json::from_str(json)
        .context("not a JSON array of {\"prompt\", \"context\", \"max_length\"}")?;
    ensure!(!entries.is_empty(), "there is no prompt");
    let resolve = |(number, entry): (usize, Entry)| {
        let context = entry.context.as_deref().map(|name| context(name, entry.max_length, read));
        let context = context.transpose().with_context(|| format!("prompt {number}"))?;
        Ok(Prompt { prompt: entry.prompt, context })
    };
    (1..).zip(entries).map(resolve).collect()
}

/// The first `max_length` characters of a context.
fn context(
    name: &str,
    max_length: Option<usize>,
    read: &dyn Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    ensure!(
        !name.contains("://"),
        "context {name:?} is an address, and nothing is fetched: save the text and name the file"
    );
    let mut text = read(name).with_context(|| format!("context {name:?}"))?;
    if let Some((end, _)) = max_length.and_then(|length| text.char_indices().nth(length)) {
        text.truncate(end);
    }
    Ok(text)
}

impl Prompt {
    /// The part that may be shortened: the context, or a prompt without one.
    pub(crate) fn body(&self) -> &str {
        self.context.as_deref().unwrap_or(&self.prompt)
    }

    /// What the model reads, with `body` in its place: an instruction follows its
    /// context, which stands between fences; a text to go on with is its context.
    pub(crate) fn with_body(&self, mode: DemoMode, body: &str) -> String {
        match (&self.context, mode) {
            (Some(_), DemoMode::Instruct) => format!("```{body}```\n\n{}", self.prompt),
            _ => body.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
