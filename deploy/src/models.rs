//! `llama-mesh models`: what a gateway serves.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::ModelsArgs;
use crate::client::Client;

/// Prints one line a model, or the gateway's own JSON.
///
/// # Errors
/// When the gateway cannot be reached.
pub(crate) async fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let models = Client::new(&args.url)?.models().await?;
    if args.json {
        println!("{models}");
        return Ok(ExitCode::SUCCESS);
    }
    for model in models.get("data").and_then(Value::as_array).into_iter().flatten() {
        let id = model.get("id").and_then(Value::as_str).unwrap_or("?");
        let length = model.get("max_model_len").and_then(Value::as_u64).unwrap_or_default();
        println!("{id}  (context {length} tokens)");
    }
    Ok(ExitCode::SUCCESS)
}
