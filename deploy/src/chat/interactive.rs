//! The conversation on a terminal: lines in, answers out, history kept.

use anyhow::Context as _;
use rustyline::error::ReadlineError;

use super::{Conversation, answer};
use crate::cache;
use crate::client::Client;

const HELP: &str =
    "/clear  start over\n/help   this text\n/exit   leave (or Ctrl-D)\nCtrl-C  stop the answer";

/// Runs until the user leaves.
///
/// # Errors
/// When the terminal cannot be read. A failed answer is shown, not returned:
/// the conversation goes on.
pub(super) async fn run(client: &Client, mut conversation: Conversation) -> anyhow::Result<()> {
    eprintln!("{} — /help for help", conversation.model);
    let history = cache::directory()?.join("chat_history");
    let mut editor = rustyline::DefaultEditor::new().context("cannot use the terminal")?;
    // The first time there is none.
    let _ = editor.load_history(&history);
    loop {
        let (returned, line) = read_line(editor).await?;
        editor = returned;
        match line {
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read the terminal"),
            Ok(line) => match line.trim() {
                "" => continue,
                "/exit" | "/quit" => break,
                "/clear" => conversation.clear(),
                "/help" => eprintln!("{HELP}"),
                text => {
                    let _ = editor.add_history_entry(text);
                    turn(client, &mut conversation, text).await;
                }
            },
        }
    }
    editor.save_history(&history).with_context(|| format!("cannot write {}", history.display()))
}

type Line = Result<String, ReadlineError>;

async fn read_line(
    mut editor: rustyline::DefaultEditor,
) -> anyhow::Result<(rustyline::DefaultEditor, Line)> {
    tokio::task::spawn_blocking(move || {
        let line = editor.readline("> ");
        (editor, line)
    })
    .await
    .context("reading the terminal panicked")
}

async fn turn(client: &Client, conversation: &mut Conversation, text: &str) {
    conversation.say(text);
    let result = tokio::select! {
        reply = answer::stream(client, conversation, true) => Some(reply),
        _ = tokio::signal::ctrl_c() => None,
    };
    println!();
    match result {
        Some(Ok(reply)) => {
            eprintln!("{}", reply.summary());
            conversation.hear(&reply.text);
        }
        Some(Err(error)) => {
            eprintln!("error: {error:#}");
            conversation.unsay();
        }
        None => {
            eprintln!("stopped");
            conversation.unsay();
        }
    }
}
