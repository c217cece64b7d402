//! One answer: streamed to standard output, timed for standard error.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use super::Conversation;
use crate::client::{Client, Part, Usage};

/// What came back, and when.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) text: String,
    finish: String,
    usage: Option<Usage>,
    first_token: Duration,
    total: Duration,
}

/// Asks once; prints the text as it comes, or one JSON object at the end.
///
/// # Errors
/// When the gateway refuses or the answer breaks off.
pub(super) async fn once(
    client: &Client,
    conversation: &mut Conversation,
    as_json: bool,
) -> anyhow::Result<()> {
    let reply = stream(client, conversation, !as_json).await?;
    if as_json {
        println(&reply.to_json(&conversation.model).to_string())?;
    } else {
        println("")?;
        eprintln!("{}", reply.summary());
    }
    Ok(())
}

/// Streams an answer, printing it as it comes if `echo`.
///
/// # Errors
/// When the gateway refuses or the answer breaks off.
pub(super) async fn stream(
    client: &Client,
    conversation: &Conversation,
    echo: bool,
) -> anyhow::Result<Reply> {
    let start = Instant::now();
    let mut answer = client.chat(&conversation.request()).await?;
    let mut reply = Reply {
        text: String::new(),
        finish: String::new(),
        usage: None,
        first_token: Duration::ZERO,
        total: Duration::ZERO,
    };
    while let Some(part) = answer.next().await? {
        match part {
            Part::Text(text) => {
                if reply.text.is_empty() {
                    reply.first_token = start.elapsed();
                }
                if echo {
                    print(&text)?;
                }
                reply.text.push_str(&text);
                reply.total = start.elapsed();
            }
            Part::Finish(reason) => reply.finish = reason,
            Part::Usage(usage) => reply.usage = Some(usage),
        }
    }
    Ok(reply)
}

impl Reply {
    /// Tokens a second after the first; `None` when there was no second.
    fn tokens_per_second(&self) -> Option<f64> {
        let later_tokens = self.usage?.completion_tokens.checked_sub(1).filter(|&n| n > 0)?;
        let seconds = self.total.checked_sub(self.first_token)?.as_secs_f64();
        (seconds > 0.0).then(|| f64::from(later_tokens) / seconds)
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        let mut line = format!("TTFT {:.0} ms", self.first_token.as_secs_f64() * 1e3);
        if let Some(rate) = self.tokens_per_second() {
            line += &format!(" · {rate:.1} tok/s");
        }
        if let Some(usage) = self.usage {
            let (prompt, answer) = (usage.prompt_tokens, usage.completion_tokens);
            line += &format!(" · {prompt} prompt + {answer} answer tokens");
        }
        if self.finish == "length" {
            line += " · cut by the length limit";
        }
        line
    }

    fn to_json(&self, model: &str) -> serde_json::Value {
        let details = self.usage.and_then(|usage| usage.prompt_tokens_details);
        json!({
            "model": model,
            "text": self.text,
            "finish_reason": self.finish,
            "prompt_tokens": self.usage.map(|usage| usage.prompt_tokens),
            "cached_tokens": details.map(|details| details.cached_tokens),
            "completion_tokens": self.usage.map(|usage| usage.completion_tokens),
            "ttft_ms": self.first_token.as_secs_f64() * 1e3,
            "tokens_per_second": self.tokens_per_second(),
        })
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")
}

fn println(text: &str) -> anyhow::Result<()> {
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(completion_tokens: u32) -> Reply {
        Reply {
            text: "hello".to_owned(),
            finish: "stop".to_owned(),
            usage: Some(Usage { prompt_tokens: 7, completion_tokens, prompt_tokens_details: None }),
            first_token: Duration::from_millis(40),
            total: Duration::from_millis(540),
        }
    }

    #[test]
    fn the_first_token_is_not_part_of_the_rate() {
        assert_eq!(reply(101).summary(), "TTFT 40 ms · 200.0 tok/s · 7 prompt + 101 answer tokens");
    }

    #[test]
    fn one_token_has_no_rate() {
        assert_eq!(reply(1).summary(), "TTFT 40 ms · 7 prompt + 1 answer tokens");
    }
}
