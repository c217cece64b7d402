//! A progress bar on a terminal, a line at the start and end elsewhere.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress towards a known number of bytes.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    plain: bool,
}

impl Progress {
    /// Starts a bar for `what`, which ends at `total` bytes.
    pub(crate) fn bytes(what: &str, total: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if plain {
            eprintln!("{what} ({} MB)", total / 1_000_000);
        }
        Self { bar, what: what.to_owned(), plain }
    }

    /// So many bytes are done.
    pub(crate) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
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
