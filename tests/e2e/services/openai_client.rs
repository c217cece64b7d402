//! The official `openai` Python client against the real binaries.

use std::process::Command;

use integration_tests::sandbox::Sandbox;

#[test]
fn the_official_client_is_served() {
    let sandbox = Sandbox::start();
    #[expect(clippy::disallowed_methods, reason = "tests/run says which Python has the client")]
    let python = std::env::var("LLAMA_MESH_TEST_PYTHON")
        .expect("LLAMA_MESH_TEST_PYTHON names a Python with the openai package; tests/run sets it");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/services/openai_client.py");
    let status =
        Command::new(python).args([script, &sandbox.url()]).status().expect("Python starts");
    assert!(status.success(), "openai_client.py failed");
    sandbox.wait_for_metric("llama_mesh_num_requests_running", 0.0);
}
