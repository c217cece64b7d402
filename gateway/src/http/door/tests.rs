//! What every request meets, over routers that do little.

use axum::routing::get;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::*;

fn arrival(headers: &[(&'static str, &str)]) -> Result<Arrival, GatewayError> {
    let map = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    arrive(&map, &RequestId::generate(), Instant::now(), &Span::none())
}

#[test]
fn the_earlier_deadline_counts() {
    let left = |headers: &[(&'static str, &str)]| {
        let arrival = arrival(headers).unwrap();
        arrival.deadline.map(|deadline| (deadline - arrival.received).as_millis())
    };
    assert_eq!(left(&[]), None);
    assert_eq!(left(&[(DEADLINE, "1500")]), Some(1500));
    assert_eq!(left(&[(GRPC_TIMEOUT, "2S")]), Some(2000));
    assert_eq!(left(&[(DEADLINE, "1500"), (GRPC_TIMEOUT, "1S")]), Some(1000));
    assert_eq!(left(&[(GRPC_TIMEOUT, "99999999H")]), Some(u128::from(MAX_DEADLINE_MS)));
}

#[test]
fn bad_headers_are_refused_by_name() {
    for (name, value) in [
        (DEADLINE, "0"),
        (DEADLINE, "-1"),
        (DEADLINE, "1.5"),
        (DEADLINE, "soon"),
        (DEADLINE, "86400001"),
        (PRIORITY, "high"),
        (GRPC_TIMEOUT, ""),
        (GRPC_TIMEOUT, "S"),
        (GRPC_TIMEOUT, "1"),
        (GRPC_TIMEOUT, "123456789S"),
        (GRPC_TIMEOUT, "-1S"),
    ] {
        let error = arrival(&[(name, value)]).expect_err(value);
        assert_eq!(error.param(), Some(name), "{value}");
    }
}

#[test]
fn a_priority_is_said_once() {
    let arrival = arrival(&[(PRIORITY, "5")]).unwrap();
    let mut request = GenerateRequest::default();
    arrival.complete(&mut request).unwrap();
    assert_eq!(request.priority, Some(5));
    request.priority = Some(4);
    assert_eq!(arrival.complete(&mut request).unwrap_err().param(), Some("priority"));
}

fn door() -> Arc<Door> {
    let http = Router::new()
        .route("/", get(|| async { "fine" }))
        .route("/panic", get(async || -> &'static str { panic!("on purpose") }));
    let grpc = tonic::service::Routes::default().into_axum_router();
    Door::new(Some(http), grpc, HostPolicy::new(&[], "127.0.0.1:1".parse().unwrap()))
}

async fn get_with(path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    door().answer(request.body(Body::empty()).unwrap()).await
}

async fn error_code(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: Value = serde_json::from_slice(&body).unwrap();
    json["error"]["code"].as_str().unwrap().to_owned()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn a_request_id_is_echoed_or_made() {
    let response = get_with("/", &[(REQUEST_ID, "mine")]).await;
    assert_eq!(response.headers()[REQUEST_ID], "mine");
    for bad in ["", "a b"] {
        let response = get_with("/", &[(REQUEST_ID, bad)]).await;
        assert_eq!(response.headers()[REQUEST_ID].len(), 36);
    }
    let response = get_with("/x", &[GRPC, (REQUEST_ID, "mine")]).await;
    assert_eq!(response.headers()[REQUEST_ID], "mine");
}

#[tokio::test]
async fn another_host_name_is_refused_in_both_protocols() {
    assert_eq!(get_with("/", &[("host", "localhost:8000")]).await.status(), 200);
    let response = get_with("/", &[("host", "evil.com")]).await;
    assert_eq!(response.status(), 403);
    assert_eq!(error_code(response).await, "forbidden");
    let response = get_with("http://evil.com/", &[]).await;
    assert_eq!(response.status(), 403, "HTTP/2 has the name in the URI");
    let response = get_with("/x", &[GRPC, ("host", "evil.com")]).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"7".parse().unwrap())
    );
}

#[tokio::test]
async fn bad_headers_are_refused_in_both_protocols() {
    let response = get_with("/", &[(DEADLINE, "soon")]).await;
    assert_eq!(response.status(), 400);
    assert_eq!(error_code(response).await, "invalid_value");
    let response = get_with("/x", &[GRPC, (DEADLINE, "soon")]).await;
    assert_eq!(response.headers()["grpc-status"], "3");
}

#[tokio::test]
async fn a_panic_is_a_500_for_its_request_alone() {
    let response = get_with("/panic", &[]).await;
    assert_eq!(response.status(), 500);
    assert_eq!(error_code(response).await, "internal");
    assert_eq!(get_with("/", &[]).await.status(), 200);
}

#[tokio::test]
async fn protocols_are_told_apart_by_content_type() {
    let response = get_with("/no.Such/Method", &[GRPC]).await;
    assert_eq!(response.headers()["grpc-status"], "12");
    let only_grpc =
        Door::new(None, tonic::service::Routes::default().into_axum_router(), HostPolicy::Any);
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(only_grpc.answer(request).await.status(), 404);
}
