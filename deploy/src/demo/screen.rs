//! What a person sees while it runs: one user's text as it is written, several
//! users' at the end, and on standard error the phases and steps.
//!
//! Phase lines and `@ <x> tok/s/user` are as the original prints them, for
//! tools that look for them.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use gateway::text::detokenizer::IncrementalDetokenizer;
use gateway::text::tokenizer::{SpecialTokens, Tokenizer};

use super::Plan;
use super::batch::{BatchRun, Event};
use super::encode::Encoded;
use super::report::per_second;
use crate::cli::DemoArgs;

/// A prompt longer than twice this many characters is shown by its ends.
const SHOWN_END: usize = 100;

/// The output of one batch.
pub(super) struct Screen<'a> {
    args: &'a DemoArgs,
    tokenizer: &'a Arc<Tokenizer>,
    /// Of the only user, if its text is shown as it comes.
    live: Option<IncrementalDetokenizer>,
    batch: u32,
    plan: Plan,
    decoding: bool,
}

impl<'a> Screen<'a> {
    pub(super) fn new(
        args: &'a DemoArgs,
        tokenizer: &'a Arc<Tokenizer>,
        batch: u32,
        plan: Plan,
    ) -> Self {
        let is_live = args.batch_size == 1 && !args.json;
        let live =
            is_live.then(|| IncrementalDetokenizer::new(tokenizer.clone(), SpecialTokens::Skip));
        Self { args, tokenizer, live, batch, plan, decoding: false }
    }

    pub(super) fn start(&self) {
        if self.plan.num_batches > 1 {
            eprintln!("batch {} of {}", self.batch + 1, self.plan.num_batches);
        }
        eprintln!("Starting prefill...");
    }

    pub(super) fn show(&mut self, event: Event) {
        match event {
            Event::Prefilled { user, took } => {
                if self.args.verbose {
                    let ms = 1e3 * took.as_secs_f64();
                    eprintln!("Prefill of user {}: {ms:.1} ms", user + 1);
                }
                if user + 1 == self.args.batch_size as usize && !self.decoding {
                    self.decoding = true;
                    eprintln!("Starting decode...");
                    if self.live.is_some() {
                        eprintln!("output:");
                    }
                }
            }
            Event::Token { id } => {
                if let Some(live) = &mut self.live {
                    say(&live.push(id));
                }
            }
            Event::Step { number, took, answering } => {
                if self.args.verbose {
                    let users = self.args.batch_size as usize;
                    eprintln!("Iteration {number}: {}, {answering} answering", speed(took, users));
                }
            }
        }
    }

    /// The texts, unless they were shown as they came, and the mean speed.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(super) fn end(&mut self, prompts: &[&Encoded], run: &BatchRun) -> anyhow::Result<()> {
        self.show_texts(prompts, run)?;
        // The mean of all steps but the first.
        if let Some(later @ [_, ..]) = run.steps.get(1..) {
            let mean = later.iter().sum::<Duration>() / u32::try_from(later.len())?;
            eprintln!("Decode: {}", speed(mean, prompts.len()));
        }
        Ok(())
    }

    fn show_texts(&mut self, prompts: &[&Encoded], run: &BatchRun) -> anyhow::Result<()> {
        if let Some(live) = &mut self.live {
            let rest = live.flush();
            say(&rest);
            say("\n");
            return Ok(());
        }
        if self.args.json {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        for (user, (prompt, answer)) in prompts.iter().zip(&run.answers).enumerate() {
            writeln!(out, "== batch {}, user {}", self.batch + 1, user + 1)?;
            writeln!(out, "prompt: {}", shortened(&prompt.text))?;
            let text = self.tokenizer.decode(&answer.ids, SpecialTokens::Skip);
            let end = if answer.stopped_by.is_some() { "" } else { " …" };
            writeln!(out, "output: {}{end}\n", text.trim())?;
        }
        Ok(())
    }
}

/// `12.5 ms @ 80.0 tok/s/user (160.0 tok/s)`.
fn speed(took: Duration, users: usize) -> String {
    let per_user = per_second(1.0, took).unwrap_or_default();
    let all = per_user * users as f64;
    format!("{:.1} ms @ {per_user:.1} tok/s/user ({all:.1} tok/s)", 1e3 * took.as_secs_f64())
}

/// The two ends of a long text, on one line.
fn shortened(text: &str) -> String {
    let flat = |text: &str| text.replace('\n', " ");
    let length = text.chars().count();
    if length <= 2 * SHOWN_END {
        return flat(text);
    }
    let head: String = text.chars().take(SHOWN_END).collect();
    let tail: String = text.chars().skip(length - SHOWN_END).collect();
    format!("{} … {}", flat(&head), flat(&tail))
}

/// Text on its way to a reader, who may have gone.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_are_shown_by_their_ends() {
        let text = format!("a\n{}{}z", "ä".repeat(150), "ö".repeat(150));
        let shown = shortened(&text);
        assert_eq!(shown.chars().count(), 203);
        assert!(shown.starts_with("a ä") && shown.contains("ä … ö") && shown.ends_with("öz"));
        assert_eq!(shortened(&"x".repeat(200)), "x".repeat(200));
    }

    #[test]
    fn a_step_has_the_line_that_tools_look_for() {
        let line = speed(Duration::from_millis(20), 32);
        assert_eq!(line, "20.0 ms @ 50.0 tok/s/user (1600.0 tok/s)");
    }
}
