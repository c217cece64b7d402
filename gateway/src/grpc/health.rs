//! `grpc.health.v1.Health`: SERVING means that a request would be taken now.
//!
//! Asked of the spine at every check rather than told by a task, so it cannot
//! lag behind a drain.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::generate::Spine;

/// How often a watched status is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// The services whose health is the gateway's; the empty name is the server.
const SERVICES: [&str; 2] = ["", "llama_mesh.v1.Inference"];

/// The health service over a spine.
#[derive(Debug)]
pub(crate) struct HealthService {
    spine: Spine,
}

impl HealthService {
    pub(crate) fn new(spine: Spine) -> Self {
        Self { spine }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(status(&self.spine))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let spine = self.spine.clone();
        let changes = stream::unfold((spine, None), move |(spine, last)| async move {
            loop {
                let now = if known { status(&spine) } else { ServingStatus::ServiceUnknown };
                if last != Some(now) {
                    return Some((Ok(response(now)), (spine, Some(now))));
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn status(spine: &Spine) -> ServingStatus {
    if spine.readiness().ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
