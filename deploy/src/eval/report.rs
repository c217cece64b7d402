//! Accuracy for people and for programs, and the verdict.

use std::io::Write as _;
use std::path::Path;

use anyhow::ensure;
use gateway::text::tokenizer::Tokenizer;
use serde::Serialize;
use serde_json::json;
use worker::identity::Identity;

use super::forced::Span;
use super::reference::{Origin, Reference};
use super::score::{Scored, Tally};
use super::thresholds::Row;
use crate::cli::EvalArgs;

/// What was measured.
#[derive(Debug)]
pub(super) struct Evaluation {
    pub(super) identity: Identity,
    pub(super) span: Span,
    /// By position.
    pub(super) scored: Vec<Scored>,
    pub(super) correlation: Option<Correlation>,
}

/// Pearson's correlation of the logits with another run's, over the decoded
/// positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Correlation {
    /// The other run.
    pub(super) with: String,
    pub(super) mean: f64,
    pub(super) min: f64,
    /// Where the least was.
    pub(super) min_position: usize,
}

/// Accuracy over some positions.
#[derive(Debug, Serialize)]
struct Accuracy {
    positions: usize,
    top1_percent: f64,
    top5_percent: f64,
    perplexity: Option<f64>,
    /// The reference model's own, over the same tokens.
    reference_perplexity: Option<f64>,
}

/// What must be reached to pass; what is unset need not be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Required {
    top1_percent: Option<f64>,
    top5_percent: Option<f64>,
    pcc: Option<f64>,
}

/// All of an evaluation.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    device: String,
    num_chips: u32,
    optimizations: String,
    reference: Option<Origin>,
    reference_tokens: usize,
    prefilled: Accuracy,
    decoded: Accuracy,
    pcc: Option<Correlation>,
    /// Of every hundred decoded tokens.
    hundreds: Vec<Accuracy>,
    /// Decoded positions whose token is not the reference's.
    errors: Vec<Error>,
    /// Of the table of expected accuracy.
    row: Option<Row>,
    required: Required,
    /// Unset when nothing was required.
    pub(super) passed: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Error {
    position: usize,
    predicted: u32,
    expected: u32,
    in_top5: bool,
}

/// `performance on CPU, 1 chip`.
pub(super) fn what_runs(identity: &Identity) -> String {
    let device = &identity.device;
    let chips = if device.num_chips == 1 { "chip" } else { "chips" };
    format!("{} on {}, {} {chips}", device.optimizations, device.name, device.num_chips)
}

impl Correlation {
    /// # Errors
    /// When there is no position.
    pub(super) fn new(with: String, first: usize, values: &[f64]) -> anyhow::Result<Self> {
        ensure!(!values.is_empty(), "no position was correlated");
        let (mut min, mut min_position) = (f64::INFINITY, first);
        for (position, &value) in (first..).zip(values) {
            if value < min {
                (min, min_position) = (value, position);
            }
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Ok(Self { with, mean, min, min_position })
    }
}

impl Accuracy {
    fn of(scored: &[Scored], reference: &Reference) -> Self {
        let tally = Tally::of(scored);
        let positions =
            scored.first().map_or(0..0, |first| first.position..first.position + scored.len());
        Self {
            positions: tally.positions,
            top1_percent: tally.top1_percent(),
            top5_percent: tally.top5_percent(),
            perplexity: tally.perplexity(),
            reference_perplexity: reference.perplexity(positions),
        }
    }
}

impl Required {
    /// From the flags, else from the table's row less the tolerance.
    pub(super) fn new(args: &EvalArgs, row: Option<&Row>, tolerance: f64) -> Self {
        let against_f32 = args.compare_optimizations.as_deref() == Some("f32")
            && args.compare_device.is_none()
            && args.compare_chips.is_none();
        Self {
            top1_percent: args.min_top1.or(row.map(|row| row.top1 - tolerance)),
            top5_percent: args.min_top5.or(row.map(|row| row.top5 - tolerance)),
            pcc: args.min_pcc.or(row.and_then(|row| row.pcc).filter(|_| against_f32)),
        }
    }

    /// Whether everything required is reached; unset when nothing is.
    pub(super) fn verdict(self, top1: f64, top5: f64, pcc: Option<f64>) -> Option<bool> {
        // A count of positions in percent, less a tolerance: the last bits of
        // either are noise.
        let reached = |required: Option<f64>, found: Option<f64>| {
            required.map(|required| found.is_some_and(|found| found >= required - 1e-9))
        };
        let all = [
            reached(self.top1_percent, Some(top1)),
            reached(self.top5_percent, Some(top5)),
            reached(self.pcc, pcc),
        ];
        all.into_iter().flatten().reduce(|all, one| all && one)
    }
}

impl Report {
    pub(super) fn new(
        args: &EvalArgs,
        reference: &Reference,
        evaluation: &Evaluation,
        row: Option<&Row>,
        tolerance: f64,
    ) -> Self {
        let Evaluation { identity, span, scored, correlation } = evaluation;
        let (prefilled, decoded) = scored.split_at(span.prefill);
        let errors = decoded.iter().filter(|scored| !scored.in_top1);
        let required = Required::new(args, row, tolerance);
        let accuracy = Accuracy::of(decoded, reference);
        let least = correlation.as_ref().map(|correlation| correlation.min);
        let passed = required.verdict(accuracy.top1_percent, accuracy.top5_percent, least);
        if let Some(origin) = &reference.origin
            && origin.weight_fingerprint != identity.model.weight_fingerprint
        {
            eprintln!(
                "note: the reference was made from other files than these weights (of {})",
                origin.model
            );
        }
        Self {
            model: identity.model.name.clone(),
            device: identity.device.name.clone(),
            num_chips: identity.device.num_chips,
            optimizations: identity.device.optimizations.clone(),
            reference: reference.origin.clone(),
            reference_tokens: reference.tokens.len(),
            prefilled: Accuracy::of(prefilled, reference),
            decoded: accuracy,
            pcc: correlation.clone(),
            hundreds: decoded.chunks(100).map(|part| Accuracy::of(part, reference)).collect(),
            errors: errors
                .map(|&Scored { position, predicted, expected, in_top5, .. }| Error {
                    position,
                    predicted,
                    expected,
                    in_top5,
                })
                .collect(),
            row: row.cloned(),
            required,
            passed,
        }
    }

    /// Prints text, or one JSON object.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub(super) fn print(&self, args: &EvalArgs, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if args.json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        for line in self.lines() {
            writeln!(out, "{line}")?;
        }
        if args.verbose {
            for line in self.details(tokenizer) {
                writeln!(out, "{line}")?;
            }
        }
        let verdict = match self.passed {
            Some(true) => "PASSED",
            Some(false) => "FAILED",
            None => "no expectation: see --min-top1, --min-top5, --min-pcc",
        };
        writeln!(out, "{verdict}")?;
        Ok(out.flush()?)
    }

    fn lines(&self) -> Vec<String> {
        let Self { model, device, num_chips, optimizations, decoded, .. } = self;
        let chips = if *num_chips == 1 { "chip" } else { "chips" };
        let made = self.reference.as_ref().map_or_else(
            || "of unknown origin".to_owned(),
            |origin| format!("of {}, {} on {}", origin.model, origin.optimizations, origin.device),
        );
        let needs = |required: Option<f64>| {
            required.map(|least| format!("  (at least {least:.2})")).unwrap_or_default()
        };
        let mut lines = vec![
            format!("model       {model} on {device}, {num_chips} {chips}, {optimizations}"),
            format!("reference   {} tokens {made}", self.reference_tokens),
            format!(
                "positions   {} prefilled, {} decoded",
                self.prefilled.positions, decoded.positions
            ),
            format!(
                "top-1       {:.2} %{}",
                decoded.top1_percent,
                needs(self.required.top1_percent)
            ),
            format!(
                "top-5       {:.2} %{}",
                decoded.top5_percent,
                needs(self.required.top5_percent)
            ),
            format!("perplexity  {}", perplexities(decoded)),
            format!(
                "prefilled   top-1 {:.2} %, top-5 {:.2} %, perplexity {}",
                self.prefilled.top1_percent,
                self.prefilled.top5_percent,
                perplexities(&self.prefilled)
            ),
        ];
        if let Some(Correlation { with, mean, min, min_position }) = &self.pcc {
            // Tools look for `PCC: `.
            let least = self.required.pcc;
            let least = least.map(|least| format!("  (at least {least})")).unwrap_or_default();
            lines.push(format!("PCC: {min:.6}   least, at position {min_position}{least}"));
            lines.push(format!("            mean {mean:.6}, with {with}"));
        }
        lines.push(self.row.as_ref().map_or_else(
            || "expected    nothing: no row of the table fits".to_owned(),
            |Row { model, device, optimizations, top1, top5, source, .. }| {
                format!(
                    "expected    {top1} / {top5} by the row {model}, {device}, {optimizations} \
                     ({source})"
                )
            },
        ));
        lines
    }

    /// Accuracy of every hundred tokens, and every token that is not the
    /// reference's.
    fn details(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut lines = vec!["decoded     top-1 %  top-5 %".to_owned()];
        for (index, part) in self.hundreds.iter().enumerate() {
            let first = 100 * index;
            let range = format!("{first}–{}", first + part.positions - 1);
            lines.push(format!("{range:10}{:9.2}{:9.2}", part.top1_percent, part.top5_percent));
        }
        for Error { position, predicted, expected, in_top5 } in &self.errors {
            let mark = if *in_top5 { '-' } else { '!' };
            lines.push(format!(
                "{mark} position {position}: {:?} where the reference has {:?}",
                tokenizer.token_text(*predicted),
                tokenizer.token_text(*expected)
            ));
        }
        lines
    }
}

fn perplexities(accuracy: &Accuracy) -> String {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
    let own = number(accuracy.perplexity);
    format!("{own} (of the reference: {})", number(accuracy.reference_perplexity))
}

/// Says what reference was written.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn print_reference(
    reference: &Reference,
    path: &Path,
    as_json: bool,
) -> anyhow::Result<()> {
    let tokens = reference.tokens.len();
    let perplexity = reference.perplexity(0..tokens);
    let mut out = std::io::stdout().lock();
    if as_json {
        let origin = &reference.origin;
        let line = json!({
            "path": path, "tokens": tokens, "perplexity": perplexity, "reference": origin,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    let perplexity = perplexity.unwrap_or_default();
    writeln!(out, "{}: {tokens} tokens, perplexity {perplexity:.4}", path.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Required = Required { top1_percent: None, top5_percent: None, pcc: None };

    #[test]
    fn everything_required_must_be_reached() {
        assert_eq!(NOTHING.verdict(0.0, 0.0, None), None);
        let both = Required { top1_percent: Some(87.5), top5_percent: Some(97.5), ..NOTHING };
        assert_eq!(both.verdict(87.5, 97.5, None), Some(true));
        assert_eq!(both.verdict(87.4, 99.0, None), Some(false));
        assert_eq!(both.verdict(99.0, 97.4, None), Some(false));
        let pcc = Required { pcc: Some(0.99), ..NOTHING };
        assert_eq!(pcc.verdict(0.0, 0.0, Some(0.99)), Some(true));
        assert_eq!(pcc.verdict(100.0, 100.0, Some(0.98)), Some(false));
        assert_eq!(pcc.verdict(100.0, 100.0, None), Some(false));
        // 0.5 points below a value that is not exact in binary.
        let below = Required { top1_percent: Some(97.7 - 0.5), ..NOTHING };
        assert_eq!(below.verdict(97.2, 0.0, None), Some(true));
    }

    #[test]
    fn the_least_correlation_is_found_with_its_place() {
        let found = Correlation::new("x".to_owned(), 512, &[0.75, 0.25, 0.5]).unwrap();
        assert_eq!((found.mean, found.min, found.min_position), (0.5, 0.25, 513));
        assert!(Correlation::new("x".to_owned(), 512, &[]).is_err());
    }
}
