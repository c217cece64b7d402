//! Where files that may be lost live: the default model, chat history, logs.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;

/// The cache directory: `$LLAMA_MESH_CACHE`, else `$XDG_CACHE_HOME/llama-mesh`,
/// else `$HOME/.cache/llama-mesh`. Created when it is not there.
///
/// # Errors
/// When none of the three is set, or the directory cannot be made.
pub(crate) fn directory() -> anyhow::Result<PathBuf> {
    let path = choose(&|name| std::env::var_os(name)).context(
        "no place for the cache: set LLAMA_MESH_CACHE, or HOME, to a directory that can be written",
    )?;
    std::fs::create_dir_all(&path)
        .with_context(|| format!("cannot make the cache directory {}", path.display()))?;
    Ok(path)
}

fn choose(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("LLAMA_MESH_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("llama-mesh")))
        .or_else(|| Some(set("HOME")?.join(".cache/llama-mesh")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pairs: &[(&str, &str)]) -> Option<PathBuf> {
        choose(&|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_most_specific_variable_wins() {
        let all = [("LLAMA_MESH_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(chosen(&all), Some("/a".into()));
        assert_eq!(chosen(&all[1..]), Some("/b/llama-mesh".into()));
        assert_eq!(chosen(&all[2..]), Some("/c/.cache/llama-mesh".into()));
        assert_eq!(chosen(&[("HOME", "")]), None);
    }
}
