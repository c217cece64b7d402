//! What a decode step costs the host where it is not a recorded one, on mock
//! devices: checks, allocation and the look-up of each program, but no
//! enqueueing; and how many operations a layer is.
//!
//! Needs the environment of `deploy/mock/setup.sh`:
//! `cargo bench -p mesh-ttnn --features ttnn --bench steps`.

#[path = "../tests/mock/devices.rs"]
mod devices;
#[path = "../tests/mock/model.rs"]
mod model;

use std::time::{Duration, Instant};

use llama::tiny::family;
use llama::{Device, Llama3Size, LlamaConfig};
use mesh_ttnn::python::Dispatch;
use model::{Model, Place};

const STEPS: usize = 20;

fn main() {
    println!(
        "model          device  decode, ms  a layer, ms  operations a layer, in all  programs  prefill of 1000, ms"
    );
    for device in Device::CARDS {
        for size in [Llama3Size::B1, Llama3Size::B3, Llama3Size::B8, Llama3Size::B70] {
            if size == Llama3Size::B70 && device != Device::T3K {
                continue;
            }
            // The same devices in fewer or more of them: one process, one cluster.
            let dispatch = Dispatch::Ethernet;
            let place = Place { cluster: "t3k-h1", device, dispatch, grid_rows: 8 };
            let whole = measure(place, size, &family::config(size));
            let of_layers = |n: usize| {
                measure(place, size, &LlamaConfig { num_hidden_layers: n, ..family::config(size) })
            };
            let (one, two) = (of_layers(1), of_layers(2));
            let layers = family::config(size).num_hidden_layers;
            let per_layer = (whole.step - one.step).as_secs_f64() / (layers - 1) as f64;
            println!(
                "{size:<14} {device:<6} {:>11.1} {:>12.3} {:>19} {:>7} {:>9} {:>20.1}",
                whole.step.as_secs_f64() * 1e3,
                per_layer * 1e3,
                two.operations - one.operations,
                whole.operations,
                whole.programs,
                whole.prefill.as_secs_f64() * 1e3,
            );
        }
    }
}

struct Cost {
    /// Median.
    step: Duration,
    operations: usize,
    /// Of a decode.
    programs: usize,
    /// Median.
    prefill: Duration,
}

fn measure(place: Place, size: Llama3Size, config: &LlamaConfig) -> Cost {
    let _alone = devices::alone();
    let mut model = Model::load(place, size, config);
    let greedy = || Some(vec![mesh::Choice::Greedy; 32]);
    model.decode(32, greedy());
    model.decode(32, greedy());
    let programs = model.num_programs();
    let step = median(|| model.decode(32, greedy()));
    model.prefill(0, 1000);
    let prefill = median(|| model.prefill(0, 1000));
    model.ops().begin_capture().expect("operations can be listed");
    model.decode(32, greedy());
    let mut operations = model.ops().end_capture().expect("operations can be listed");
    operations.retain(|name| name.ends_with("DeviceOperation"));
    Cost { step, operations: operations.len(), programs, prefill }
}

fn median(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..STEPS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[STEPS / 2]
}
