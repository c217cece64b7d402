//! A full queue: refused at once, with a time to come back, and only while it
//! is full.

use tokio::sync::oneshot;

use super::*;

const WAITING: &str = "llama_mesh_num_requests_waiting{model_name=\"tiny\"}";

impl Site {
    /// With room for one answer in the worker, which never ends it after its
    /// first token, and for one in the queue.
    async fn start_narrow() -> Self {
        let queue = QueueConfig { max_waiting_sequences: 1, ..Default::default() };
        let script = Script { slots: 1, pause_after: 1, ..Default::default() };
        Self::start_served(script, queue).await
    }

    /// Waits until so many requests are in the queue.
    async fn wait_for_waiting(&self, wanted: u32) {
        let line = format!("{WAITING} {wanted}\n");
        let seen = async {
            while !self.get("/metrics").await.body.as_str().is_some_and(|text| text.contains(&line))
            {
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the queue is as wanted in time");
    }

    /// A client that waits for its answer until it is told to leave.
    fn linger(&self) -> oneshot::Sender<()> {
        let (leave, left) = oneshot::channel::<()>();
        let request = self.request("POST", "/v1/chat/completions");
        let request = request.header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(chat_body().to_string()))).unwrap();
        let answer = self.client.request(request);
        self.shutdown.spawn("client", async move {
            tokio::select! {
                answer = answer => panic!("answered: {answer:?}"),
                _ = left => {}
            }
        });
        leave
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let site = Site::start_narrow().await;
    let running = site.linger();
    site.workers[0].wait_for(|log| log.num_resident == 1, |_| ()).await;
    let waiting = site.linger();
    site.wait_for_waiting(1).await;

    for stream in [false, true] {
        let mut body = chat_body();
        body["stream"] = stream.into();
        let refused = site.post("/v1/chat/completions", &body).await;
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert_eq!(refused.body["error"]["code"], "overloaded");
        assert_eq!(refused.body["error"]["type"], "rate_limit_error");
        let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
    }
    let refused = chat_status(&site, chat_message()).await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("overloaded"));
    assert!(details.retry_info().and_then(|info| info.retry_delay).is_some());
    let pushback = refused.metadata().get("grpc-retry-pushback-ms").expect("a pushback");
    assert!(pushback.to_str().unwrap().parse::<u64>().unwrap() >= 1000);

    // Clients that leave make room, in the queue and in the worker.
    drop(waiting);
    site.wait_for_waiting(0).await;
    drop(running);
    site.workers[0].wait_for(|log| log.num_resident == 0, |_| ()).await;
    let mut short = chat_body();
    short["max_tokens"] = 1.into();
    let reply = site.post("/v1/chat/completions", &short).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(site.shutdown.num_panics(), 0, "nobody who lingered was answered");
}
