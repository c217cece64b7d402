//! A worker from its files to its end, with a tiny model.

use super::*;

use std::path::Path;

use llama::tiny::TinyModel;
use proto::v1 as wire;
use proto::v1::gateway_frame::Frame;
use proto::v1::worker_client::WorkerClient;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Nothing in a test takes this long.
const LONG: Duration = Duration::from_secs(60);

fn tiny_model(dir: &Path) {
    TinyModel::new(llama::tiny::config(), 7).write_hugging_face(dir).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{}").unwrap();
}

fn settings(dir: &Path) -> WorkerConfig {
    WorkerConfig {
        model: Some(dir.to_owned()),
        listen: format!("unix:{}", dir.join("w.sock").display()),
        served_model_name: Some("tiny".to_owned()),
        threads: std::num::NonZeroUsize::new(1),
        max_num_seqs: 4,
        grace_ms: 200,
        ..WorkerConfig::default()
    }
}

/// A running worker and a connection to it.
struct Running {
    shutdown: Shutdown,
    channel: Channel,
    ended: tokio::task::JoinHandle<()>,
    result: oneshot::Receiver<Result<(), WorkerError>>,
}

impl Running {
    async fn start(settings: WorkerConfig) -> Self {
        let shutdown = Shutdown::new(settings.grace());
        let app = settings.build(shutdown.clone(), None).await.unwrap();
        let endpoint = Endpoint::from_shared(app.address().to_string()).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let (ready_tx, ready) = oneshot::channel();
        let (result_tx, result) = oneshot::channel();
        let runner = Shutdown::new(LONG);
        let ended = runner.spawn("app", async move {
            let _ = result_tx.send(app.run(ready_tx).await);
        });
        tokio::time::timeout(LONG, ready).await.unwrap().expect("it loads");
        Self { shutdown, channel, ended, result }
    }

    async fn health(&self, service: &str) -> Result<i32, tonic::Status> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = HealthClient::new(self.channel.clone()).check(request).await?;
        Ok(response.into_inner().status)
    }

    async fn stop(self) -> Result<(), WorkerError> {
        self.shutdown.begin();
        let result = tokio::time::timeout(LONG, self.result).await.expect("it ends").unwrap();
        self.ended.await.unwrap();
        result
    }
}

fn generation(max_new_tokens: u32) -> wire::Generation {
    wire::Generation {
        prompt_token_ids: vec![1, 2, 3],
        max_new_tokens,
        ignore_eos: true,
        ..wire::Generation::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_loads_serves_and_drains() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(dir.path());
    let running = Running::start(settings(dir.path())).await;
    for service in ["", "llama_mesh.v1.Worker"] {
        assert_eq!(running.health(service).await.unwrap(), ServingStatus::Serving as i32);
    }
    let mut client = WorkerClient::new(running.channel.clone());
    let described = client.describe(wire::DescribeRequest {}).await.unwrap().into_inner();
    let (model, limits) = (described.model.unwrap(), described.limits.unwrap());
    assert_eq!((model.name.as_str(), model.vocab_size), ("tiny", 256));
    assert_eq!(model.tokenizer_fingerprint.len(), 64);
    assert_eq!((limits.max_model_len, limits.num_kv_blocks), (512, 64));
    let request =
        wire::GenerateRequest { request_id: String::new(), generation: Some(generation(8)) };
    let answers = client.generate(request).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.iter().map(|answer| answer.token_ids.len()).sum::<usize>(), 8);
    drop(client);
    running.stop().await.unwrap();
    assert!(!dir.path().join("w.sock").exists(), "the socket is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_on_request_has_the_grace_that_it_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(dir.path());
    let running = Running::start(WorkerConfig { grace_ms: 0, ..settings(dir.path()) }).await;
    let mut client = WorkerClient::new(running.channel.clone());
    let request =
        wire::GenerateRequest { request_id: String::new(), generation: Some(generation(500)) };
    let answers = client.generate(request).await.unwrap().into_inner();
    let grace_ms = Some(LONG.as_millis() as u64);
    let drained = client.drain(wire::DrainRequest { grace_ms });
    let (answers, drained) = tokio::join!(answers.collect::<Vec<_>>(), drained);
    let tokens: usize = answers.into_iter().map(|answer| answer.unwrap().token_ids.len()).sum();
    assert_eq!((tokens, drained.unwrap().into_inner().cancelled), (500, 0));
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_neither_reads_nor_leaves_does_not_hold_the_exit() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(dir.path());
    let running = Running::start(settings(dir.path())).await;
    let mut client = WorkerClient::new(running.channel.clone());
    let hello = Frame::Hello(wire::Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        gateway_id: "stuck".into(),
        epoch: 1,
    });
    let admit = |request_key| {
        Frame::Admit(wire::Admit {
            request_key,
            generation: Some(generation(500)),
            ..wire::Admit::default()
        })
    };
    let frames = [hello, admit(1), admit(2)].map(|frame| wire::GatewayFrame { frame: Some(frame) });
    let outbound = tokio_stream::iter(frames).chain(tokio_stream::pending());
    let stuck = client.serve(outbound).await.unwrap();
    let begun = std::time::Instant::now();
    running.stop().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_loaded_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    tiny_model(dir.path());
    let good = settings(dir.path());
    let fails = async |settings: WorkerConfig| {
        let shutdown = Shutdown::new(settings.grace());
        let app = settings.build(shutdown, None).await.unwrap();
        let (ready, _) = oneshot::channel();
        app.run(ready).await.unwrap_err()
    };
    let cases = [
        (WorkerConfig { model: None, ..good.clone() }, "LLAMA_DIR", 64),
        (WorkerConfig { model: Some("/no/such".into()), ..good.clone() }, "/no/such", 1),
        (WorkerConfig { chips: Some(4), ..good.clone() }, "1 or 2", 64),
        (WorkerConfig { max_model_len: Some(513), ..good.clone() }, "512", 64),
        (
            WorkerConfig {
                max_model_len: Some(512),
                kv: crate::config::KvConfig { blocks: Some(3), ..good.kv.clone() },
                ..good.clone()
            },
            "holds 96",
            64,
        ),
    ];
    for (settings, names, code) in cases {
        let error = fails(settings).await;
        assert!(error.to_string().contains(names), "{error} does not name {names}");
        assert_eq!(error.exit_code(), code, "{error}");
    }
}

/// What the server says in its first frame; limits that tonic would leave off
/// are among it.
#[tokio::test]
async fn the_server_announces_its_limits() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.sock");
    let listener = Listener::bind(&ListenAddress::Unix(path.clone())).await.unwrap();
    let (_, health) = tonic_health::server::health_reporter();
    let shutdown = Shutdown::new(LONG);
    let router = server().add_service(health);
    shutdown.spawn("server", async move {
        router.serve_with_incoming(listener.into_incoming()).await.unwrap();
    });
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS");
    let mut settings = vec![0; usize::from(head[2]) | usize::from(head[1]) << 8];
    stream.read_exact(&mut settings).await.unwrap();
    let settings: std::collections::HashMap<u16, u32> = settings
        .chunks_exact(6)
        .map(|entry| {
            let value = [entry[2], entry[3], entry[4], entry[5]];
            (u16::from_be_bytes([entry[0], entry[1]]), u32::from_be_bytes(value))
        })
        .collect();
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE and
    // MAX_HEADER_LIST_SIZE, as RFC 9113 numbers them.
    let expected = [(3, 64), (4, 16 << 20), (5, 64 << 10), (6, 16 << 10)];
    for (setting, value) in expected {
        assert_eq!(settings.get(&setting), Some(&value), "setting {setting}: {settings:?}");
    }
}

#[tokio::test]
async fn a_reset_is_run_and_never_waited_for_longer_than_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let settings = |command: &[&str]| TtnnConfig {
        reset_command: command.iter().map(|word| (*word).to_owned()).collect(),
        reset_timeout_ms: 5_000,
        ..TtnnConfig::default()
    };
    reset(&settings(&[])).await;
    assert!(!done.exists());
    reset(&settings(&["touch", done.to_str().unwrap()])).await;
    assert!(done.exists());
    // Neither a failure, nor a missing program, nor a hang is the end of the world.
    reset(&settings(&["false"])).await;
    reset(&settings(&["/no/such/program"])).await;
    let begun = std::time::Instant::now();
    reset(&TtnnConfig { reset_timeout_ms: 50, ..settings(&["sleep", "600"]) }).await;
    assert!(begun.elapsed() < LONG);
}
