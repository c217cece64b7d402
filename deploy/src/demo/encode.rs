//! Prompts as token ids that fit.

use anyhow::{Context as _, anyhow, bail};
use gateway::text::chat_template::ChatMessage;
use gateway::text::{TextError, TextModel};

use super::prompts::Prompt;
use crate::cli::DemoMode;

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Encoded {
    /// In words.
    pub(super) text: String,
    /// At least one.
    pub(super) ids: Vec<u32>,
    /// Ids that were cut out of it to make it fit.
    pub(super) clipped: usize,
}

/// What is to be done with a prompt that is too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fit {
    /// Most tokens of a prompt and its answer.
    pub(super) max_len: usize,
    /// Decode iterations after the prompt.
    pub(super) iterations: usize,
    /// Shorten it; refuse it otherwise.
    pub(super) clip: bool,
}

/// Encodes every prompt, by the chat template or after the token that starts a
/// text.
///
/// # Errors
/// The first prompt that cannot be encoded or does not fit, by its number.
pub(super) fn encode_all(
    text: &TextModel,
    prompts: &[Prompt],
    mode: DemoMode,
    fit: Fit,
) -> anyhow::Result<Vec<Encoded>> {
    let encode = |content: &str| match mode {
        DemoMode::Instruct => {
            let message = ChatMessage {
                role: "user".to_owned(),
                content: content.to_owned(),
                tool_calls: Vec::new(),
            };
            text.encode_chat(&[message], &[], true).map_err(|error| match error {
                TextError::NoTemplate => anyhow!("{error}: use --mode general"),
                error => error.into(),
            })
        }
        DemoMode::General => Ok(text.encode_completion(content)?),
    };
    let one = |(number, prompt): (usize, &Prompt)| {
        let full = prompt.with_body(mode, prompt.body());
        let ids = encode(&full)?;
        if ids.is_empty() {
            bail!("prompt {number} is empty");
        }
        let skeleton = encode(&prompt.with_body(mode, ""))?;
        let (ids, clipped) =
            fitted(ids, &skeleton, fit).with_context(|| format!("prompt {number} is too long"))?;
        Ok(Encoded { text: full, ids, clipped })
    };
    (1..).zip(prompts).map(one).collect()
}

/// `ids`, or as many of them as fit. `skeleton` is the prompt without the part
/// that may be shortened: what both begin and end with, the template's control
/// tokens and the question among it, is kept; the end of the rest goes.
fn fitted(ids: Vec<u32>, skeleton: &[u32], fit: Fit) -> anyhow::Result<(Vec<u32>, usize)> {
    let most = fit.max_len.saturating_sub(fit.iterations);
    if ids.len() <= most {
        return Ok((ids, 0));
    }
    let Fit { max_len, iterations, clip } = fit;
    let length = ids.len();
    if !clip {
        bail!(
            "it has {length} tokens, with {iterations} decode iterations at most {most} fit \
             the length of {max_len}: shorten it, or let --clip do so"
        );
    }
    let common = |pairs: &mut dyn Iterator<Item = (&u32, &u32)>| {
        pairs.take_while(|(left, right)| left == right).count()
    };
    let head = common(&mut ids.iter().zip(skeleton));
    let tail = common(&mut ids[head..].iter().rev().zip(skeleton[head..].iter().rev()));
    let Some(kept) = most.checked_sub(head + tail).filter(|kept| *kept > 0) else {
        bail!(
            "with {iterations} decode iterations {most} tokens fit the length of {max_len}, and \
             what cannot be cut out of it has {} already",
            head + tail
        );
    };
    let mut clipped = ids[..head + kept].to_vec();
    clipped.extend_from_slice(&ids[length - tail..]);
    Ok((clipped, length - most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Fit = Fit { max_len: 10, iterations: 2, clip: true };

    #[test]
    fn clipping_keeps_both_ends() {
        // 1, 2 open the turn, 8, 9 close it; 5 is the question.
        let ids = vec![1, 2, 20, 21, 22, 23, 24, 5, 8, 9];
        let skeleton = [1, 2, 5, 8, 9];
        let (clipped, cut) = fitted(ids.clone(), &skeleton, FIT).unwrap();
        assert_eq!((&clipped[..], cut), (&[1, 2, 20, 21, 22, 5, 8, 9][..], 2));
        let whole = fitted(ids.clone(), &skeleton, Fit { max_len: 12, ..FIT }).unwrap();
        assert_eq!(whole, (ids, 0));
    }

    #[test]
    fn a_prompt_that_begins_like_its_end_is_not_cut_twice() {
        let (clipped, _) = fitted(vec![7; 12], &[7; 4], FIT).unwrap();
        assert_eq!(clipped, [7; 8]);
        let (clipped, _) = fitted((0..12).collect(), &[0], FIT).unwrap();
        assert_eq!(clipped, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn too_long_a_prompt_is_refused_with_both_numbers() {
        let error = fitted(vec![0; 9], &[], Fit { clip: false, ..FIT }).unwrap_err().to_string();
        assert!(error.contains("9 tokens") && error.contains("at most 8"), "{error}");
        let skeleton: Vec<u32> = (0..8).collect();
        let ids: Vec<u32> = (0..20).collect();
        let error = fitted(ids, &skeleton, FIT).unwrap_err().to_string();
        assert!(error.contains("has 8 already"), "{error}");
        let beyond = Fit { max_len: 1, iterations: 5, clip: false };
        assert!(fitted(vec![0; 1], &[], beyond).is_err());
    }
}
