//! OpenAI's JSON, with vLLM's extensions: bodies in, bodies out.
//!
//! Every field of a request is honoured or refused by name, never ignored.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod fields;
pub(crate) mod options;
pub(crate) mod render;
pub(crate) mod reply;
pub(crate) mod tokens;

#[cfg(test)]
mod tests;
