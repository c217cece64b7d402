//! A progress bar on a terminal, a line at the start and end elsewhere.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress towards a known number of bytes or steps.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    plain: bool,
}

impl Progress {
    /// Starts a bar for `what`, which ends at `total` bytes.
    pub(crate) fn bytes(what: &str, total: u64) -> Self {
        let size = format!("{} MB", total / 1_000_000);
        Self::new(what, total, &size, "{bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    /// The same for steps.
    pub(crate) fn steps(what: &str, total: u64) -> Self {
        Self::new(what, total, &format!("{total} steps"), "{pos}/{len} {eta}")
    }

    fn new(what: &str, total: u64, size: &str, numbers: &str) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let style = format!("{{msg}} [{{bar:30}}] {numbers}");
        if let Ok(style) = ProgressStyle::with_template(&style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if plain {
            eprintln!("{what} ({size})");
        }
        Self { bar, what: what.to_owned(), plain }
    }

    /// So many bytes or steps are done.
    pub(crate) fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Everything is done.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
        let verb = if self.plain { "" } else { "✓ " };
        eprintln!("{verb}{}: done", self.what);
    }

    /// It will not be done.
    pub(crate) fn abandon(&self) {
        self.bar.finish_and_clear();
    }
}
