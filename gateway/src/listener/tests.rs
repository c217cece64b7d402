//! Real sockets on loopback, with short timeouts.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use super::*;

const SHORT: Duration = Duration::from_millis(100);
/// Longest that a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells when it is dropped.
struct Witness(mpsc::Sender<&'static str>);

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.0.try_send("dropped");
    }
}

/// Sends for as long as it is asked.
struct Endless {
    _witness: Witness,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; 16 * 1024])))))
    }
}

/// What a test's server does, by path.
#[derive(Clone)]
struct Site {
    dropped: mpsc::Sender<&'static str>,
    release: Arc<Notify>,
}

impl Answer for Site {
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let witness = Witness(self.dropped.clone());
        match request.uri().path() {
            "/endless" => Response::new(Body::new(Endless { _witness: witness })),
            "/wait" => {
                self.release.notified().await;
                Response::new(Body::from("released"))
            }
            _ => Response::new(Body::from("hello")),
        }
    }
}

struct Server {
    address: SocketAddr,
    shutdown: Shutdown,
    dropped: mpsc::Receiver<&'static str>,
    release: Arc<Notify>,
}

impl Server {
    async fn start(budget: ConnectionBudget) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(address, Arc::new(budget)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new(PATIENCE);
        let (sender, dropped) = mpsc::channel(16);
        let release = Arc::new(Notify::new());
        let site = Site { dropped: sender, release: Arc::clone(&release) };
        shutdown.spawn("listener", listener.serve(site, shutdown.clone()));
        Self { address, shutdown, dropped, release }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends `bytes` and reads until the server closes.
    async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        // The server may have closed already.
        let _ = stream.write_all(bytes).await;
        until_closed(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        String::from_utf8(self.exchange(request.as_bytes()).await).unwrap()
    }

    async fn something_was_dropped(&mut self) {
        in_time(self.dropped.recv()).await.unwrap();
    }
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    // A reset is an end as well.
    let _ = in_time(stream.read_to_end(&mut read)).await;
    read
}

fn hasty() -> ConnectionBudget {
    ConnectionBudget {
        first_byte_timeout: SHORT,
        head_timeout: SHORT,
        idle_timeout: SHORT,
        write_timeout: SHORT,
        ..ConnectionBudget::default()
    }
}

/// HTTP/2 frames as (type, flags, stream, payload).
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let Some(payload) = bytes.get(9..9 + length) else { break };
        frames.push((bytes[3], bytes[4], stream, payload.to_vec()));
        bytes = &bytes[9 + length..];
    }
    frames
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn the_budget_stands_in_the_settings_on_the_wire() {
    let server = Server::start(ConnectionBudget::default()).await;
    let mut stream = server.connect().await;
    stream.write_all(HTTP2_PREFACE).await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut read = Vec::new();
    // Its settings, its window, and its acknowledgement of ours.
    while frames(&read).len() < 3 {
        assert_ne!(in_time(stream.read_buf(&mut read)).await.unwrap(), 0);
    }
    let frames = frames(&read);
    let settings: Vec<(u16, u32)> = frames[0]
        .3
        .chunks_exact(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
        .collect();
    for (name, id, value) in [
        ("header table", 1, 4 * 1024),
        ("concurrent streams", 3, 64),
        ("stream window", 4, 64 * 1024),
        ("header list", 6, 16 * 1024),
    ] {
        assert!(settings.contains(&(id, value)), "{name}: {settings:?}");
    }
    let grown = frames.iter().find(|frame| frame.0 == 8 && frame.2 == 0).expect("a window update");
    let grown = u32::from_be_bytes(grown.3[..4].try_into().unwrap());
    assert_eq!(grown + 65_535, 256 * 1024, "the connection's window");
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = Server::start(ConnectionBudget::default()).await;
    let mut flood = HTTP2_PREFACE.to_vec();
    flood.extend(frame(4, 0, 0, &[]));
    for i in 0..1000 {
        // GET / of host "a", END_HEADERS and END_STREAM; then CANCEL.
        flood.extend(frame(1, 5, 2 * i + 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']));
        flood.extend(frame(3, 0, 2 * i + 1, &8_u32.to_be_bytes()));
    }
    let read = server.exchange(&flood).await;
    let calm = frames(&read).iter().any(|frame| frame.0 == 7 && frame.3[4..8] == [0, 0, 0, 0xb]);
    assert!(calm || read.is_empty(), "{:?}", frames(&read));
    assert!(server.get("/").await.ends_with("hello"), "others are served");
}

#[tokio::test]
async fn clients_that_say_too_little_are_closed() {
    let server = Server::start(hasty()).await;
    for said in ["", "G", "GET / HTTP/1.1\r\nhost: x\r\n", "PRI", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        assert_eq!(server.exchange(said.as_bytes()).await, b"", "{said:?}");
    }
    let once = server.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(once.ends_with(b"hello"), "an idle connection is closed, its answer is not");
    let half = server.exchange(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT").await;
    assert_eq!(String::from_utf8_lossy(&half).matches("hello").count(), 1);
}

#[tokio::test]
async fn a_long_answer_outlives_the_timeouts_of_heads() {
    let server = Server::start(hasty()).await;
    let slow = async {
        let answer = server.get("/wait").await;
        assert!(answer.ends_with("released"), "{answer}");
    };
    let clock = async {
        // Each takes one timeout.
        for _ in 0..4 {
            server.exchange(b"").await;
        }
        server.release.notify_one();
    };
    tokio::join!(slow, clock);
}

#[tokio::test]
async fn an_http1_client_that_does_not_read_is_closed() {
    let mut server = Server::start(hasty()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.something_was_dropped().await;
}

#[tokio::test]
async fn an_http2_stream_without_window_is_reset_and_its_neighbour_is_served() {
    let mut server = Server::start(hasty()).await;
    let stream = server.connect().await;
    let (mut client, connection) = h2::client::Builder::new()
        .initial_window_size(1000)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    server.shutdown.spawn("client", async {
        let _ = connection.await;
    });
    let request = |path: &str| Request::get(format!("http://x{path}")).body(()).unwrap();
    let (stalled, _) = client.send_request(request("/endless"), true).unwrap();
    let mut stalled = in_time(stalled).await.unwrap().into_body();
    server.something_was_dropped().await;
    let end = loop {
        match in_time(stalled.data()).await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    let reset = end.expect("not a clean end").unwrap_err();
    assert_eq!(reset.reason(), Some(h2::Reason::CANCEL));
    let (good, _) = client.send_request(request("/"), true).unwrap();
    let mut good = in_time(good).await.unwrap().into_body();
    assert_eq!(in_time(good.data()).await.unwrap().unwrap(), "hello");
    server.shutdown.cancel();
}

#[tokio::test]
async fn a_client_that_leaves_drops_its_unary_request() {
    let mut server = Server::start(ConnectionBudget::default()).await;
    let mut stream = server.connect().await;
    let request = b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(request).await.unwrap();
    // Once the answer is being waited for, an identical request is as well.
    let mut probe = server.connect().await;
    probe.write_all(request).await.unwrap();
    server.release.notify_one();
    server.something_was_dropped().await;
    drop(stream);
    drop(probe);
    server.something_was_dropped().await;
}

#[tokio::test]
async fn one_connection_over_the_bound_is_closed_at_once() {
    let budget = ConnectionBudget { max_connections: 1, ..ConnectionBudget::default() };
    let server = Server::start(budget).await;
    let mut first = server.connect().await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    first.write_all(request).await.unwrap();
    let mut byte = [0];
    in_time(first.read_exact(&mut byte)).await.unwrap();
    assert_eq!(server.exchange(request).await, b"");
    drop(first);
    in_time(async {
        while !server.get("/").await.ends_with("hello") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let server = Server::start(ConnectionBudget::default()).await;
    let mut held = server.connect().await;
    held.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut idle = server.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    in_time(idle.read_exact(&mut byte)).await.unwrap();
    let drained = server.shutdown.drain(PATIENCE);
    let client = async {
        until_closed(&mut idle).await;
        in_time(async {
            while let Ok(mut stream) = TcpStream::connect(server.address).await {
                assert_eq!(until_closed(&mut stream).await, b"");
            }
        })
        .await;
        server.release.notify_one();
        let answer = String::from_utf8(until_closed(&mut held).await).unwrap();
        assert!(answer.ends_with("released"), "{answer}");
    };
    let (drained, ()) = tokio::join!(drained, client);
    assert_eq!(drained, common::shutdown::Drained::Finished);
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let server = Server::start(ConnectionBudget::default()).await;
    let long = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = server.exchange(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(101));
    let answer = server.exchange(many.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}
