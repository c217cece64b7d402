//! What llama.cpp answers on the packaged model (`tests/golden/smollm2.json`).

use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// Ten questions in the model's chat format.
    pub chats: Vec<Chat>,
    /// Passages for teacher forcing.
    pub forced: Vec<Forced>,
}

/// One question and its greedy answer.
#[derive(Debug, Deserialize)]
pub struct Chat {
    /// In words.
    pub question: String,
    /// Rendered by the chat template, as ids.
    pub prompt: Vec<u32>,
    /// 64 ids, end of turn ignored.
    pub greedy: Vec<u32>,
}

/// One passage.
#[derive(Debug, Deserialize)]
pub struct Forced {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Likeliest id after each position.
    pub top1: Vec<u32>,
    /// Logit distance between the likeliest and the second.
    pub margin: Vec<f32>,
    /// Log-probability of the id that follows, for every position but the last.
    pub next_logprob: Vec<f32>,
}

impl Golden {
    /// Reads the committed file.
    ///
    /// # Panics
    /// When it is not what the script writes.
    pub fn load() -> Self {
        serde_json::from_str(include_str!("../golden/smollm2.json")).expect("the script's output")
    }
}
