//! `llama-mesh eval`: how much of a reference's choices a policy or a device
//! keeps, by teacher forcing.
//!
//! The text's own tokens are fed, never the model's: first a prefill, then one
//! by one. Row `t` of the logits, after token `t`, is held against row `t` of
//! the reference. Ids are fed, not text, so that nothing shifts.

mod forced;
mod pcc;
mod reference;
mod refpt;
mod report;
mod score;
mod thresholds;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use self::forced::Span;
use self::reference::{Origin, Reference};
use self::report::{Correlation, Evaluation, Report};
use self::score::Scored;
use self::thresholds::Thresholds;
use crate::cli::{EvalArgs, ModelArgs, usage_error};
use crate::demo::{LONG_TEXT, read_text};
use crate::driver::Opened;
use crate::services;

/// Tokens of a reference where nothing else is asked for.
const TOTAL_LENGTH: usize = 1024;
/// Tokens that are prefilled where nothing else is asked for.
const PREFILL: usize = 512;
/// Most memory of logits that are kept to be correlated.
const MAX_KEPT_BYTES: usize = 4 << 30;

/// Evaluates, or makes a reference.
///
/// # Errors
/// Wrong usage, files that cannot be used, or a mesh that fails. An evaluation
/// that does not pass is none, but exit code 1.
pub(crate) async fn run(args: EvalArgs) -> anyhow::Result<ExitCode> {
    let other = args.compared_model();
    if args.min_pcc.is_some() && other.is_none() {
        let message =
            "--min-pcc needs --compare-optimizations, --compare-device or --compare-chips";
        return Err(usage_error(message.to_owned()));
    }
    let model = services::model_path(args.model.model.clone()).await?;
    let eval = move || match &args.make_reference {
        Some(out) => make_reference(&args, &model, out),
        None => evaluate(&args, &model, other.as_ref()),
    };
    tokio::task::spawn_blocking(eval).await.context("the evaluation panicked")?
}

fn make_reference(args: &EvalArgs, model: &Path, out: &Path) -> anyhow::Result<ExitCode> {
    let reference = reference_of(args, model)?;
    reference.write(out)?;
    report::print_reference(&reference, out, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Computes the reference of the text, in f32 unless another policy was asked
/// for by --make-reference.
fn reference_of(args: &EvalArgs, model: &Path) -> anyhow::Result<Reference> {
    let mut model_args = args.model.clone();
    if args.make_reference.is_none() || model_args.optimizations.is_none() {
        model_args.optimizations = Some("f32".to_owned());
    }
    let opened = Opened::open(model, &model_args)?;
    let tokens = tokens(args, &opened)?;
    let span = Span { prefill: tokens.len() - 1, decode: 0 };
    let mut loaded = forced::load(&opened, span)?;
    let (mut top5, mut next_logprobs) = (Vec::new(), Vec::new());
    forced::run(&mut loaded, &tokens, span, &mut |position, row| {
        let (ids, logprob) = score::top5(row, Some(tokens[position + 1]))?;
        top5.push(ids);
        next_logprobs.extend(logprob);
        Ok(())
    })?;
    let origin = Some(Origin::of(&loaded.identity));
    Ok(Reference { origin, tokens, top5, next_logprobs })
}

/// The ids of the text, as many as are asked for and no more than the model can
/// take.
fn tokens(args: &EvalArgs, opened: &Opened) -> anyhow::Result<Vec<u32>> {
    let text = args.text.as_deref().map_or_else(|| Ok(LONG_TEXT.to_owned()), read_text)?;
    let mut tokens = opened.text.encode_completion(&text)?;
    let wanted = args.total_length.map_or(TOTAL_LENGTH.min(tokens.len()), |length| length as usize);
    let most = tokens.len();
    ensure!(wanted <= most, "the text has {most} tokens, --total-length asks for {wanted}");
    ensure!(wanted >= 2, "the text has {most} tokens, two are the least");
    tokens.truncate(wanted);
    Ok(tokens)
}

fn evaluate(args: &EvalArgs, model: &Path, other: Option<&ModelArgs>) -> anyhow::Result<ExitCode> {
    // First of all, so that bad settings and bad files are known at once.
    let opened = Opened::open(model, &args.model)?;
    let reference = match &args.reference {
        Some(file) => Reference::read(file)?,
        None => {
            eprintln!("no --reference: computing one in f32");
            reference_of(args, model)?
        }
    };
    reference.check_tokenizer(&opened.text.fingerprint, opened.config.vocab_size)?;
    let span = span(args, &reference)?;
    let kept = other.map(|other| keep_logits(other, model, &reference, span)).transpose()?;
    let evaluation = score_all(&opened, &reference, span, kept)?;
    let table = Thresholds::built_in()?;
    let row = table.row_of(&opened.config, &evaluation.identity);
    let report = Report::new(args, &reference, &evaluation, row, table.tolerance);
    report.print(args, &opened.text.tokenizer)?;
    Ok(if report.passed == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is prefilled and what is decoded of a reference.
fn span(args: &EvalArgs, reference: &Reference) -> anyhow::Result<Span> {
    let rows = reference.top5.len();
    let default = PREFILL.min(reference.tokens.len() / 2).max(1);
    let prefill = args.prefill.map_or(default, |prefill| prefill as usize);
    // The last token has none after it to be decoded for.
    let all = (reference.tokens.len() - 1).saturating_sub(prefill);
    let decode = args.decode.map_or(all, |decode| decode as usize);
    ensure!(
        decode > 0 && prefill + decode <= rows,
        "the reference predicts after {rows} tokens; {prefill} prefilled and {decode} decoded \
         do not fit it: see --prefill and --decode"
    );
    Ok(Span { prefill, decode })
}

/// The logits of another run at the decoded positions, `[decode, vocab_size]`.
struct Kept {
    /// What ran.
    with: String,
    logits: Vec<f32>,
}

fn keep_logits(
    other: &ModelArgs,
    model: &Path,
    reference: &Reference,
    span: Span,
) -> anyhow::Result<Kept> {
    let opened = Opened::open(model, other)?;
    let bytes = span.decode.saturating_mul(4 * opened.config.vocab_size);
    ensure!(
        bytes <= MAX_KEPT_BYTES,
        "the logits of {} positions take {} MiB, at most {} are kept: decode fewer by --decode",
        span.decode,
        bytes >> 20,
        MAX_KEPT_BYTES >> 20
    );
    let mut loaded = forced::load(&opened, span)?;
    let mut logits = Vec::with_capacity(bytes / 4);
    forced::run(&mut loaded, &reference.tokens, span, &mut |position, row| {
        if position >= span.prefill {
            logits.extend_from_slice(row);
        }
        Ok(())
    })?;
    Ok(Kept { with: report::what_runs(&loaded.identity), logits })
}

/// Scores every position, and correlates the decoded ones.
fn score_all(
    opened: &Opened,
    reference: &Reference,
    span: Span,
    kept: Option<Kept>,
) -> anyhow::Result<Evaluation> {
    let mut loaded = forced::load(opened, span)?;
    let mut scored: Vec<Scored> = Vec::with_capacity(span.len());
    let mut correlations = Vec::new();
    let Reference { tokens, top5, .. } = reference;
    forced::run(&mut loaded, tokens, span, &mut |position, row| {
        let next = tokens.get(position + 1).copied();
        scored.push(score::score(position, row, &top5[position], next)?);
        if let (Some(kept), Some(step)) = (&kept, position.checked_sub(span.prefill)) {
            let other = &kept.logits[step * row.len()..(step + 1) * row.len()];
            correlations.push(pcc::pearson(row, other));
        }
        Ok(())
    })?;
    let correlation =
        kept.map(|kept| Correlation::new(kept.with, span.prefill, &correlations)).transpose()?;
    Ok(Evaluation { identity: loaded.identity, span, scored, correlation })
}

#[cfg(test)]
mod tests;
