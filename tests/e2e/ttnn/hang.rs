//! A device that does not answer in time.

use std::process::Command;

use integration_tests::sandbox::executable;

use crate::place::{ON_T3K, environment, model};

/// No device decodes in a millisecond: the first step of a known kind is late.
#[test]
fn a_device_that_hangs_is_reset_and_the_process_ends_for_its_supervisor() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let model = model(scratch.path());
    let done = scratch.path().join("reset");
    let reset = format!("[\"touch\", \"{}\"]", done.display());
    let mut command = Command::new(executable());
    command.args(["worker", "--listen", "127.0.0.1:0", "--model"]).arg(&model).args(ON_T3K);
    command.envs(environment("t3k.yaml", scratch.path()));
    command.env("LLAMA_MESH_WORKER__TTNN__STEP_TIMEOUT_MS", "1");
    command.env("LLAMA_MESH_WORKER__TTNN__RESET_COMMAND", reset);
    let output = command.output().expect("the executable starts");
    let error = String::from_utf8_lossy(&output.stderr);
    // The stuck thread does not hold the exit up.
    assert_eq!(output.status.code(), Some(75), "{error}");
    assert!(error.contains("the device has not answered for 1ms"), "{error}");
    assert!(error.contains("the device is reset") && done.exists(), "{error}");
}
