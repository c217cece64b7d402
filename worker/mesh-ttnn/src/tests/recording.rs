//! A recorded decode step is all that later ones run.

use llama::{Llama3Size, Optimizations};
use mesh::{Choice, StepBatch};

use super::models::{Miniature, Piece, batch, tokens};

#[test]
fn a_recorded_step_is_replayed_with_what_is_written_and_nothing_else() {
    let miniature = Miniature::new(Llama3Size::B11);
    for chips in [1, 8] {
        for choices in [None, Some(vec![Choice::Greedy])] {
            let mut model = miniature.on_ttnn(chips, Optimizations::Performance);
            let ids = tokens(3, 40);
            let mut calls = Vec::new();
            for (position, id) in ids.iter().enumerate() {
                model.runner.mesh_mut().ops_mut().clear_calls();
                let block_table: &[u32] = if position < 32 { &[5] } else { &[5, 2] };
                let piece = Piece {
                    tokens: std::slice::from_ref(id),
                    first_position: position,
                    block_table,
                };
                let choices = choices.clone();
                model.run(StepBatch { logit_rows: vec![0], choices, ..batch(&[piece]) });
                calls.push(model.runner.mesh_mut().ops_mut().calls().to_vec());
            }
            // Compiled, recorded, and from then on replayed. Whichever step takes
            // a new block writes the page table too.
            assert!(calls[0].len() > 40 && calls[1].len() > 40, "{chips} chips");
            for (position, calls) in calls.iter().enumerate().skip(2) {
                let count = |name: &str| calls.iter().filter(|call| call.contains(name)).count();
                let writes = if position == 32 { 4 } else { 3 };
                assert_eq!(count("copy_host_to_device_tensor"), writes, "{position}: {calls:?}");
                assert_eq!(count("execute_trace"), 1, "{calls:?}");
                assert_eq!(count("linear") + count("add") + count("embedding"), 0, "{calls:?}");
            }
        }
    }
}
