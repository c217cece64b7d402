//! The spine: every request of every protocol goes through
//! [`Spine::generate`]. Read this first.
//!
//! Valid request → prompt ids (off the async threads, bounded) → fits the
//! context? → one sequence per answer into the scheduler's queue → a
//! [`TextStream`] that turns what comes back into text.

mod prompts;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::shutdown::Shutdown;
use common::telemetry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::error::GatewayError;
use crate::metrics::Metrics;
use crate::request::{PromptInput, RequestLimits, ValidRequest};
use crate::scheduler::Scheduler;
use crate::scheduler::sequence::SequenceSpec;
use crate::scheduler::state::SchedulerConfig;
use crate::text::tokenizer::SpecialTokens;
use crate::text::{ChatFormat, TextModel};
use crate::text_stream::{Account, Answer, AnswerSpec, Opening, TextStream};
use crate::worker_pool::roster::{Roster, WorkerState};
use crate::worker_pool::{self, Expected, PoolConfig};

/// When a client should come back during a drain.
const DRAINING_RETRY: Duration = Duration::from_secs(5);

/// Everything that a spine is made of but the model.
#[derive(Clone, Debug)]
pub struct SpineConfig {
    /// What a request may ask at most; see [`RequestLimits::for_model`].
    pub limits: RequestLimits,
    /// The workers.
    pub pool: PoolConfig,
    /// The queue.
    pub scheduler: SchedulerConfig,
    /// Of the model's text files, as the workers state it; a worker with
    /// another one is refused. `None` trusts every worker.
    pub tokenizer_fingerprint: Option<String>,
    /// Prompts that are tokenized at the same time; further ones wait.
    pub max_tokenizing: usize,
}

/// The way of every request, of HTTP and gRPC alike; clones are one handle.
#[derive(Clone, Debug)]
pub struct Spine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limits: RequestLimits,
    text: Arc<TextModel>,
    tokenizing: Arc<Semaphore>,
    scheduler: Scheduler,
    roster: Arc<Roster>,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    created_unix_s: u64,
}

impl Spine {
    /// Starts the scheduler and a link to every worker, all under `shutdown`:
    /// on drain they finish what is queued and end.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        config: SpineConfig,
        text: Arc<TextModel>,
        metrics: Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> Self {
        let roster = Arc::new(Roster::new(&config.pool.endpoints));
        let stop_links = CancellationToken::new();
        let scheduler = Scheduler::start(
            config.scheduler,
            Arc::clone(&roster),
            Arc::clone(&metrics),
            stop_links.clone(),
            shutdown,
        );
        let expected = Expected {
            tokenizer_fingerprint: config.tokenizer_fingerprint,
            vocab_size: config.limits.vocab_size,
        };
        let sender = scheduler.link_sender();
        worker_pool::start(&config.pool, &expected, &roster, &sender, (shutdown, &stop_links));
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let inner = Inner {
            limits: config.limits,
            text,
            tokenizing: Arc::new(Semaphore::new(config.max_tokenizing.max(1))),
            scheduler,
            roster,
            metrics,
            draining: shutdown.draining().clone(),
            created_unix_s: since_epoch.map_or(0, |since| since.as_secs()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts the answers of a request.
    ///
    /// # Errors
    /// Whatever keeps the request from being queued: a prompt that does not
    /// fit, a full queue, no worker, a drain.
    pub async fn generate(
        &self,
        request: ValidRequest,
        ctx: RequestContext,
    ) -> Result<TextStream, GatewayError> {
        let span = ctx.span.clone();
        let result = self.queue(request, ctx).await;
        if let Err(error) = &result {
            self.inner.metrics.count_error(error);
            error.record_in(&span);
        }
        result
    }

    async fn queue(
        &self,
        request: ValidRequest,
        ctx: RequestContext,
    ) -> Result<TextStream, GatewayError> {
        if self.inner.draining.is_cancelled() {
            return Err(GatewayError::Draining { retry_after: DRAINING_RETRY });
        }
        ctx.span.set_attribute("gen_ai.request.model", request.model().to_owned());
        ctx.span.set_attribute("gen_ai.response.model", self.model_name().to_owned());
        let started = Instant::now();
        let span = tracing::info_span!(parent: &ctx.span, "tokenize");
        let work = request.prompts().to_vec();
        let prompts = self.encode_all(work).instrument(span).await?;
        let tokenize = started.elapsed();
        let prompt_tokens = prompts.iter().map(|prompt| prompt.len() as u32).sum();
        let specs = self.specs(&request, &ctx, &prompts)?;
        let answers = self.answers(&request, &specs);
        let opening = Opening {
            span: ctx.span.clone(),
            received: ctx.received,
            tokenize,
            prompt_tokens,
            n: request.n() as usize,
            num_answers: answers.len(),
        };
        let submitted = Instant::now();
        let queue_span = tracing::info_span!(parent: &ctx.span, "queue");
        let reader = self.inner.scheduler.submit(specs, queue_span).await?;
        let account = Account::new(Arc::clone(&self.inner.metrics), submitted, opening);
        Ok(TextStream::new(reader, answers, account))
    }

    /// One sequence per answer: `prompt_index * n + i`.
    fn specs(
        &self,
        request: &ValidRequest,
        ctx: &RequestContext,
        prompts: &[Arc<[u32]>],
    ) -> Result<Vec<SequenceSpec>, GatewayError> {
        let trace = telemetry::inject(&ctx.span);
        let request_id: Arc<str> = ctx.request_id.as_str().into();
        let stop_token_ids: Arc<[u32]> = request.stop_token_ids().into();
        let cache_salt: Arc<[u8]> = request.user_key().unwrap_or_default().as_bytes().into();
        let mut specs = Vec::with_capacity(prompts.len() * request.n() as usize);
        for prompt in prompts {
            let max_new_tokens = self.max_new_tokens(request, prompt.len() as u64)?;
            for i in 0..request.n() {
                specs.push(SequenceSpec {
                    request_id: Arc::clone(&request_id),
                    prompt: Arc::clone(prompt),
                    max_new_tokens,
                    min_new_tokens: request.min_tokens(),
                    stop_token_ids: Arc::clone(&stop_token_ids),
                    ignore_eos: request.ignore_eos(),
                    sampling: Arc::clone(request.sampling()),
                    seed: request.seed_of(i),
                    any_draw: request.any_draw(),
                    logprobs: request.logprobs(),
                    prompt_logprobs: request.logprobs().filter(|_| request.echo()),
                    priority: request.priority(),
                    deadline: request.deadline(),
                    cache_salt: Arc::clone(&cache_salt),
                    trace: trace.clone(),
                });
            }
        }
        Ok(specs)
    }

    /// How many tokens an answer to such a prompt may have.
    fn max_new_tokens(
        &self,
        request: &ValidRequest,
        prompt_tokens: u64,
    ) -> Result<u32, GatewayError> {
        let max_model_len = u64::from(self.max_model_len());
        let least = request.max_tokens().map_or(1, u64::from);
        if prompt_tokens + least > max_model_len {
            let max_tokens = least;
            return Err(GatewayError::ContextLengthExceeded {
                prompt_tokens,
                max_tokens,
                max_model_len,
            });
        }
        let most = request.max_tokens().map_or(max_model_len - prompt_tokens, u64::from) as u32;
        if request.min_tokens() > most {
            let min = request.min_tokens();
            let message = format!("min_tokens is {min}, at most {most} fit after the prompt");
            return Err(GatewayError::invalid("min_tokens", message));
        }
        Ok(most)
    }

    fn answers(&self, request: &ValidRequest, specs: &[SequenceSpec]) -> Vec<Answer> {
        let stop: Arc<[String]> = request.stop().into();
        let answer = |(choice, spec): (u32, &SequenceSpec)| {
            Answer::new(AnswerSpec {
                choice,
                tokenizer: Arc::clone(&self.inner.text.tokenizer),
                prompt: Arc::clone(&spec.prompt),
                stop: Arc::clone(&stop),
                stop_token_ids: Arc::clone(&spec.stop_token_ids),
                ignore_eos: spec.ignore_eos,
                echo: request.echo(),
                prompt_logprobs: spec.prompt_logprobs.is_some(),
                return_prompt_token_ids: request.return_prompt_token_ids(),
            })
        };
        (0u32..).zip(specs).map(answer).collect()
    }

    /// The ids that a prompt becomes. `add_special_tokens` (default: true for
    /// text, false for messages, whose template has its own) puts the
    /// beginning-of-text id in front.
    ///
    /// # Errors
    /// As for a prompt of a request.
    pub async fn tokenize(
        &self,
        input: PromptInput,
        add_special_tokens: Option<bool>,
    ) -> Result<Vec<u32>, GatewayError> {
        self.tokenize_prompt(input, add_special_tokens).await
    }

    /// The text of these ids, special tokens by name.
    ///
    /// # Errors
    /// An id outside the vocabulary, or more ids than the context holds.
    pub async fn detokenize(&self, ids: Vec<i64>) -> Result<String, GatewayError> {
        if ids.is_empty() {
            return Ok(String::new());
        }
        let ids = self.check_ids(ids)?;
        let text = Arc::clone(&self.inner.text);
        self.off_thread(move || Ok(text.tokenizer.decode(&ids, SpecialTokens::Keep))).await
    }

    /// The served models.
    pub fn models(&self) -> Vec<ModelInfo> {
        let ready = |state| matches!(state, WorkerState::Ready);
        let workers = self.inner.roster.entries();
        let num_workers = workers.iter().filter(|worker| ready(worker.state)).count() as u32;
        let format = self.inner.text.chat_format.as_ref();
        let model = |id: &String| ModelInfo {
            id: id.clone(),
            max_model_len: self.max_model_len(),
            num_workers,
            chat_template: format.map_or("none", ChatFormat::source).to_owned(),
            created_unix_s: self.inner.created_unix_s,
        };
        self.inner.limits.models.iter().map(model).collect()
    }

    /// Whether a request would be taken now.
    pub fn readiness(&self) -> Readiness {
        let workers = self.inner.roster.entries();
        let is_draining = self.inner.draining.is_cancelled();
        let has_worker = workers.iter().any(|worker| worker.state == WorkerState::Ready);
        let reason = match (is_draining, has_worker) {
            (true, _) => "draining".to_owned(),
            (false, true) => "ready".to_owned(),
            (false, false) => match workers.first() {
                None => "no worker is configured".to_owned(),
                Some(first) => {
                    let state = first.state.as_str();
                    format!("no worker is ready: {} is {state}: {}", first.endpoint, first.reason)
                }
            },
        };
        let workers = workers.into_iter().map(|worker| WorkerInfo {
            endpoint: worker.endpoint,
            state: worker.state.as_str(),
            reason: worker.reason,
            device: worker.device,
            num_running: worker.num_running,
        });
        Readiness { ready: has_worker && !is_draining, reason, workers: workers.collect() }
    }

    /// What a request may ask at most.
    pub fn limits(&self) -> &RequestLimits {
        &self.inner.limits
    }

    /// The metrics, which `/metrics` renders.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// The canonical name of the model.
    pub fn model_name(&self) -> &str {
        self.inner.limits.models.first().map_or("", String::as_str)
    }

    /// Most tokens of prompt and answer together that a worker takes now.
    pub fn max_model_len(&self) -> u32 {
        let own = self.inner.limits.max_model_len;
        let workers = self.inner.roster.max_sequence_tokens();
        workers.map_or(own, |most| most.min(u64::from(own)) as u32)
    }
}

/// What accompanies a request besides its content.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// For logs, traces and the client.
    pub request_id: String,
    /// The request's span; children are made under it and its attributes filled.
    pub span: tracing::Span,
    /// When the request's head arrived.
    pub received: Instant,
}

/// One served model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name that clients use.
    pub id: String,
    /// Most tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Workers that are ready.
    pub num_workers: u32,
    /// Where the chat template comes from.
    pub chat_template: String,
    /// Seconds since the epoch when the gateway loaded it.
    pub created_unix_s: u64,
}

/// Whether the gateway can serve, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether a request would be taken now.
    pub ready: bool,
    /// For people.
    pub reason: String,
    /// Every known worker.
    pub workers: Vec<WorkerInfo>,
}

/// One worker as the gateway sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Where it is.
    pub endpoint: String,
    /// `connecting`, `ready`, `draining` or `down`.
    pub state: &'static str,
    /// Why it is not ready.
    pub reason: String,
    /// For example `CPU`; empty until it has described itself.
    pub device: String,
    /// Sequences of this gateway on it.
    pub num_running: u32,
}
