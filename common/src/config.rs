//! Settings from four places, each over the one before: defaults, a TOML file,
//! the environment, the command line.
//!
//! The environment twin of the key `kv.block_size` is
//! `LLAMA_MESH_WORKER__KV__BLOCK_SIZE`: the service's prefix, then the key in
//! capitals, with **two** underscores at every step down (keys have single ones
//! of their own). A list is written as in TOML: `["a", "b"]`.
//!
//! What nobody asked for is refused: an unknown key in any of the places, and a
//! variable with the prefix that is not spelled as above. Settings types derive
//! `Deserialize` with `#[serde(default, deny_unknown_fields)]`, so that their
//! defaults stand in one place, their `Default`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

/// Exit code of a process whose configuration is bad.
pub const EXIT_BAD_CONFIG: u8 = 64;

/// What a secret looks like to everybody but its user.
const REDACTED: &str = "[redacted]";

/// Why the settings were refused. The text names the key and where it stood.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, or cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A variable whose name or value is no setting.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// The variable.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An unknown key, a wrong type, or text that is not TOML.
    #[error("bad configuration: {0}")]
    Invalid(#[from] config::ConfigError),
    /// A value that is of the right type and yet cannot be used.
    #[error("bad configuration: {key} {reason}")]
    Value {
        /// Path of the key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// For a service's own `validate`: `key` "is 0, it must be at least 1".
    #[must_use]
    pub fn value(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Value { key: key.into(), reason: reason.into() }
    }
}

/// Reads the settings of one service.
///
/// `file` is TOML, and must exist if named. `env_prefix` is the service's
/// prefix without underscores at its end, for example `LLAMA_MESH_WORKER`.
/// `flags` are (dotted key, value) pairs from the command line; a `null` is a
/// flag that was not given.
///
/// # Errors
/// [`ConfigError`] names the key, and the file or variable it came from.
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    flags: Vec<(String, Json)>,
) -> Result<T, ConfigError> {
    load_from(file, env_prefix, std::env::vars_os(), flags)
}

/// [`load`] with the environment as an argument.
///
/// # Errors
/// As [`load`].
pub fn load_from<T: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: Vec<(String, Json)>,
) -> Result<T, ConfigError> {
    let mut builder = config::Config::builder();
    if let Some(path) = file {
        // Read here for its own error; the loader below would guess at the
        // name's ending.
        std::fs::File::open(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        let file = config::File::from(path).format(config::FileFormat::Toml);
        builder = builder.add_source(file);
    }
    let mut layer = config::Config::builder();
    for (key, name, value) in environment_keys(env_prefix, environment)? {
        let kind = environment_value(&name, &value)?;
        let origin = format!("environment variable {name}");
        layer = layer.set_override(key, config::Value::new(Some(&origin), kind))?;
    }
    builder = builder.add_source(layer.build()?);
    let origin = "the command line".to_owned();
    for (key, value) in flags {
        if !value.is_null() {
            builder =
                builder.set_override(key, config::Value::new(Some(&origin), to_kind(value)))?;
        }
    }
    Ok(builder.build()?.try_deserialize()?)
}

/// Logs the settings in force as one JSON object, without secrets.
pub fn log_effective<T: Serialize>(settings: &T) {
    let shown = redacted(settings);
    tracing::info!(settings = %shown, "settings in force");
}

/// The settings as JSON, without secrets: text under a key that is named as
/// one (`api_key`, `token`, `secret`, `password`) is not shown.
#[must_use]
pub fn redacted<T: Serialize>(settings: &T) -> Json {
    let mut json = serde_json::to_value(settings).unwrap_or(Json::Null);
    redact(&mut json, false);
    json
}

/// Text that no log, dump or debug output shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Hides `value`.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> Serialize for Secret<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self)
    }
}

/// (key, variable name, value) of each variable that is a setting.
fn environment_keys(
    prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String, String)>, ConfigError> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with(prefix)) else { continue };
        let Some(rest) = name[prefix.len()..].strip_prefix('_') else { continue };
        // Kubernetes puts these beside a Service that has our name.
        if rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_") {
            continue;
        }
        let refuse = |reason: String| ConfigError::Environment { name: name.to_owned(), reason };
        let Some(path) = rest.strip_prefix('_') else {
            return Err(refuse(format!("settings are spelled {prefix}__KEY__SUBKEY")));
        };
        let Some(value) = value.to_str() else {
            return Err(refuse("the value is not UTF-8".to_owned()));
        };
        let steps: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        let plain = |step: &String| {
            step.starts_with(|first: char| first.is_ascii_alphabetic())
                && step.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !steps.iter().all(plain) {
            return Err(refuse(format!("settings are spelled {prefix}__KEY__SUBKEY")));
        }
        found.push((steps.join("."), name.to_owned(), value.to_owned()));
    }
    Ok(found)
}

/// Numbers and booleans stay text here: the settings type says what they are.
fn environment_value(name: &str, text: &str) -> Result<config::ValueKind, ConfigError> {
    if !text.trim_start().starts_with('[') {
        return Ok(text.to_owned().into());
    }
    // TOML and JSON spell lists of text and numbers alike.
    let list: Json = serde_json::from_str(text).map_err(|error| ConfigError::Environment {
        name: name.to_owned(),
        reason: format!("not a list like [\"a\", \"b\"]: {error}"),
    })?;
    Ok(to_kind(list))
}

fn to_kind(json: Json) -> config::ValueKind {
    match json {
        Json::Null => config::ValueKind::Nil,
        Json::Bool(value) => value.into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => value.into(),
            (None, Some(value)) => value.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(value) => value.into(),
        Json::Array(values) => {
            let values = values.into_iter().map(|value| config::Value::new(None, to_kind(value)));
            config::ValueKind::Array(values.collect())
        }
        Json::Object(entries) => {
            let entries = entries
                .into_iter()
                .map(|(key, value)| (key, config::Value::new(None, to_kind(value))));
            config::ValueKind::Table(entries.collect())
        }
    }
}

fn redact(json: &mut Json, secret: bool) {
    match json {
        Json::String(text) if secret && !text.is_empty() => REDACTED.clone_into(text),
        Json::Array(values) => values.iter_mut().for_each(|value| redact(value, secret)),
        Json::Object(entries) => {
            for (key, value) in entries {
                redact(value, secret || names_a_secret(key));
            }
        }
        _ => {}
    }
}

/// By whole words, so that `max_batched_tokens` (a number anyway) and
/// `tokenizer` do not count; a path to a secret is none.
fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let words = || key.split(['_', '-']);
    let is_path = words().next_back().is_some_and(|word| matches!(word, "file" | "path" | "dir"));
    !is_path
        && words().any(|word| {
            let word = word.strip_suffix('s').unwrap_or(word);
            matches!(word, "key" | "apikey" | "token" | "secret" | "password" | "passwd")
        })
}

#[cfg(test)]
mod tests;
