//! The client-facing gRPC: the same requests as HTTP's, through the same
//! validation and the same spine.

mod convert;
mod health;

use std::pin::Pin;

use axum::Router;
use futures::{Stream, StreamExt as _};
use proto::v1;
use proto::v1::inference_server::{Inference, InferenceServer};
use tonic::{Request, Response, Status};

pub(crate) use self::health::HealthService;
use crate::error::GatewayError;
use crate::generate::Spine;
use crate::http::door::Arrival;
use crate::http::tokens::check_model;
use crate::http::wire::reply::Identity;
use crate::request::{GenerateRequest, PromptInput, ValidRequest};
use crate::text_stream::{TextEvent, TextStream};

/// Largest message to a client: an answer with all its log-probabilities comes
/// in many.
const MAX_SENT_BYTES: usize = 16 << 20;

/// All gRPC services.
///
/// # Panics
/// Never: the compiled descriptors are well-formed.
pub(crate) fn router(spine: Spine, max_message_bytes: usize) -> Router {
    let health = HealthService::new(spine.clone());
    let inference = InferenceServer::new(InferenceService { spine })
        .max_decoding_message_size(max_message_bytes)
        .max_encoding_message_size(MAX_SENT_BYTES);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the compiled descriptors are well-formed");
    tonic::service::Routes::new(inference)
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection)
        .into_axum_router()
}

struct InferenceService {
    spine: Spine,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl InferenceService {
    /// The common part of both streaming calls.
    async fn generate(
        &self,
        mut request: GenerateRequest,
        arrival: Arrival,
    ) -> Result<(Identity, TextStream), GatewayError> {
        let prefix = if request.chat { "chatcmpl" } else { "cmpl" };
        let valid = arrival
            .complete(&mut request)
            .and_then(|()| ValidRequest::new(request, self.spine.limits()))
            .inspect_err(|error| self.spine.metrics().count_error(error))?;
        let identity = Identity::new(prefix, valid.model());
        let events = self.spine.generate(valid, arrival.context()).await?;
        Ok((identity, events))
    }
}

#[tonic::async_trait]
impl Inference for InferenceService {
    type ChatStream = Streamed<v1::ChatResponse>;
    type CompleteStream = Streamed<v1::CompleteResponse>;

    async fn chat(
        &self,
        request: Request<v1::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let arrival = arrival(&request)?;
        let (generate, with_ids) = convert::chat(request.into_inner());
        let (identity, events) = self.generate(generate, arrival).await?;
        let respond = move |event| {
            let (delta, usage) = parts(event?, with_ids);
            let (id, model) = (identity.id.clone(), identity.model.clone());
            Ok(v1::ChatResponse { id, model, delta, usage })
        };
        Ok(Response::new(Box::pin(events.map(respond))))
    }

    async fn complete(
        &self,
        request: Request<v1::CompleteRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let arrival = arrival(&request)?;
        let (generate, with_ids) = convert::complete(request.into_inner());
        let (identity, events) = self.generate(generate, arrival).await?;
        let respond = move |event| {
            let (delta, usage) = parts(event?, with_ids);
            let (id, model) = (identity.id.clone(), identity.model.clone());
            Ok(v1::CompleteResponse { id, model, delta, usage })
        };
        Ok(Response::new(Box::pin(events.map(respond))))
    }

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.spine.models().into_iter().map(convert::model).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let request = request.into_inner();
        check_model(some(&request.model), self.spine.limits())?;
        let input = match (request.text, request.messages) {
            (Some(text), messages) if messages.is_empty() => PromptInput::Text(text),
            (None, messages) if !messages.is_empty() => convert::messages(messages),
            (None, _) => return Err(GatewayError::invalid("text", "text is missing").into()),
            (Some(_), _) => {
                let error = GatewayError::invalid("text", "give text or messages, not both");
                return Err(error.into());
            }
        };
        let token_ids = self.spine.tokenize(input, request.add_special_tokens).await?;
        let max_model_len = self.spine.max_model_len();
        Ok(Response::new(v1::TokenizeResponse { token_ids, max_model_len }))
    }

    async fn detokenize(
        &self,
        request: Request<v1::DetokenizeRequest>,
    ) -> Result<Response<v1::DetokenizeResponse>, Status> {
        let request = request.into_inner();
        check_model(some(&request.model), self.spine.limits())?;
        let ids = request.token_ids.into_iter().map(i64::from).collect();
        let text = self.spine.detokenize(ids).await?;
        Ok(Response::new(v1::DetokenizeResponse { text }))
    }
}

/// Proto3 cannot tell an empty name from none.
fn some(model: &str) -> Option<&str> {
    (!model.is_empty()).then_some(model)
}

fn arrival<T>(request: &Request<T>) -> Result<Arrival, GatewayError> {
    let arrival = request.extensions().get::<Arrival>().cloned();
    arrival.ok_or_else(|| GatewayError::Internal("request came in by no door".into()))
}

fn parts(event: TextEvent, with_ids: convert::WithIds) -> (Option<v1::Delta>, Option<v1::Usage>) {
    match event {
        TextEvent::Delta(delta) => (Some(convert::delta(delta, with_ids)), None),
        TextEvent::Done(usage) => (None, Some(convert::usage(&usage))),
    }
}
