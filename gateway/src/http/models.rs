//! `GET /v1/models` and `GET /v1/models/{model}`.

use axum::extract::{Path, State};
use axum::response::Response;

use super::door::HttpState;
use super::reply::json;
use super::wire::fields::quote;
use super::wire::reply::{ModelBody, ModelList};
use crate::error::GatewayError;
use crate::generate::ModelInfo;

pub(super) async fn list(State(state): State<HttpState>) -> Response {
    let data = state.spine.models().into_iter().map(body).collect();
    json(&ModelList { object: "list", data })
}

pub(super) async fn retrieve(
    State(state): State<HttpState>,
    Path(id): Path<String>,
) -> Result<Response, GatewayError> {
    let found = state.spine.models().into_iter().find(|model| model.id == id);
    let model = found.ok_or_else(|| GatewayError::ModelNotFound { model: quote(&id) })?;
    Ok(json(&body(model)))
}

fn body(model: ModelInfo) -> ModelBody {
    ModelBody {
        id: model.id,
        object: "model",
        created: model.created_unix_s,
        owned_by: "llama-mesh",
        max_model_len: model.max_model_len,
        workers: model.num_workers,
        chat_template: model.chat_template,
    }
}
