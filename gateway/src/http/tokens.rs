//! `POST /tokenize` and `POST /detokenize`.

use axum::extract::{Request, State};
use axum::response::Response;

use super::door::HttpState;
use super::reply::json;
use super::wire::fields::quote;
use super::wire::reply::{DetokenizeReply, TokenizeReply};
use super::wire::tokens::{parse_detokenize, parse_tokenize};
use crate::error::GatewayError;
use crate::request::RequestLimits;

pub(super) async fn tokenize(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Response, GatewayError> {
    let body = state.parsed(request, parse_tokenize).await?;
    check_model(body.model.as_deref(), state.spine.limits())?;
    let tokens = state.spine.tokenize(body.input, body.add_special_tokens).await?;
    let max_model_len = state.spine.max_model_len();
    Ok(json(&TokenizeReply { count: tokens.len(), max_model_len, tokens }))
}

pub(super) async fn detokenize(
    State(state): State<HttpState>,
    request: Request,
) -> Result<Response, GatewayError> {
    let body = state.parsed(request, parse_detokenize).await?;
    check_model(body.model.as_deref(), state.spine.limits())?;
    let prompt = state.spine.detokenize(body.tokens).await?;
    Ok(json(&DetokenizeReply { prompt }))
}

/// A model need not be named here (one is served); a wrong one is refused.
pub(crate) fn check_model(model: Option<&str>, limits: &RequestLimits) -> Result<(), GatewayError> {
    match model {
        Some(model) if !limits.models.iter().any(|served| served == model) => {
            Err(GatewayError::ModelNotFound { model: quote(model) })
        }
        _ => Ok(()),
    }
}
