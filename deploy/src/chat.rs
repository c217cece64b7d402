//! `llama-mesh chat`: one question, or a conversation on the terminal.

mod answer;
mod interactive;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::{Value, json};

use crate::cli::ChatArgs;
use crate::client::Client;
use crate::services::{Plan, Services};

/// Talks to `--url`, or to services started for the call.
///
/// # Errors
/// When the services cannot start or the answer fails.
pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    if args.prompt.is_none() && !std::io::stdin().is_terminal() {
        bail!("give a prompt, as in `llama-mesh chat \"Why is the sky blue?\"`, or use a terminal");
    }
    let Some(url) = &args.url else { return run_with_services(args).await };
    converse(&Client::new(url)?, &args).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_with_services(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        model: args.model.clone(),
        workers: 1,
        http: ([127, 0, 0, 1], 0).into(),
        grpc: None,
        config: None,
        quiet: true,
    };
    let mut services = tokio::select! {
        services = Services::start(plan) => services?,
        result = tokio::signal::ctrl_c() => {
            result?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let client = Client::new(&services.url())?;
    let result = tokio::select! {
        result = converse(&client, &args) => result,
        error = services.ended() => Err(error),
    };
    let stopped = services.shutdown().await;
    result.and(stopped).map(|()| ExitCode::SUCCESS)
}

async fn converse(client: &Client, args: &ChatArgs) -> anyhow::Result<()> {
    let mut conversation = Conversation::new(client.first_model().await?, args.clone());
    match &args.prompt {
        Some(prompt) => {
            conversation.say(prompt);
            // Starting services has taken Ctrl-C over for the process.
            tokio::select! {
                result = answer::once(client, &mut conversation, args.json) => result,
                _ = tokio::signal::ctrl_c() => bail!("stopped"),
            }
        }
        None => interactive::run(client, conversation).await,
    }
}

/// The messages so far, and how to ask for the next.
#[derive(Debug)]
struct Conversation {
    model: String,
    args: ChatArgs,
    messages: Vec<Value>,
}

impl Conversation {
    fn new(model: String, args: ChatArgs) -> Self {
        let mut conversation = Self { model, args, messages: Vec::new() };
        conversation.clear();
        conversation
    }

    /// Back to the system message, if there is one.
    fn clear(&mut self) {
        let system = self.args.system.iter();
        self.messages = system.map(|text| json!({ "role": "system", "content": text })).collect();
    }

    fn say(&mut self, text: &str) {
        self.messages.push(json!({ "role": "user", "content": text }));
    }

    fn hear(&mut self, text: &str) {
        self.messages.push(json!({ "role": "assistant", "content": text }));
    }

    /// Takes back the question that got no answer.
    fn unsay(&mut self) {
        self.messages.pop();
    }

    fn request(&self) -> Value {
        let mut request = json!({
            "model": self.model,
            "messages": self.messages,
            "temperature": self.args.temperature,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(max_tokens) = self.args.max_tokens {
            request["max_completion_tokens"] = max_tokens.into();
        }
        if let Some(seed) = self.args.seed {
            request["seed"] = seed.into();
        }
        request
    }
}
