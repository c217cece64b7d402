//! One model in every layout that it comes in: the same bits.

use std::ops::ControlFlow;
use std::path::Path;

use llama::repack::{RepackOptions, repack};
use llama::{Checkpoint, DTypePolicy, Optimizations};

use crate::checkpoints;
use crate::golden::Golden;
use crate::run::Model;

fn logits(checkpoint: &Checkpoint, golden: &Golden, optimizations: Optimizations) -> Vec<Vec<f32>> {
    let policy = DTypePolicy::choose(checkpoint.config(), optimizations);
    Model::load(checkpoint, 2, policy).logits(&golden.tokens, &[golden.prompt])
}

/// A layout's name, and what writes it to a directory.
type Layout<'a> = (&'a str, &'a dyn Fn(&Path));

/// Writes the model in each of `layouts`, and expects the logits of the first
/// from all.
fn check(golden: &Golden, layouts: &[Layout<'_>]) {
    let checkpoints: Vec<_> = layouts
        .iter()
        .map(|(layout, write)| {
            let directory = tempfile::tempdir().expect("a directory");
            write(directory.path());
            let checkpoint = Checkpoint::open(directory.path())
                .unwrap_or_else(|error| panic!("{layout}: {error}"));
            (*layout, checkpoint, directory)
        })
        .collect();
    for optimizations in [Optimizations::F32, Optimizations::Performance] {
        let mut first = None;
        for (layout, checkpoint, _) in &checkpoints {
            let found = logits(checkpoint, golden, optimizations);
            let expected = first.get_or_insert_with(|| found.clone());
            assert!(found == *expected, "{layout} in {optimizations} gives other logits");
        }
    }
}

#[test]
fn shards_chunks_one_file_and_hugging_faces_are_one_model() {
    let golden = Golden::load("70b");
    check(
        &golden,
        &[
            ("8 files", &|directory| checkpoints::write_meta(&golden, 8, directory)),
            ("repacked", &|directory| {
                let shards = tempfile::tempdir().expect("a directory");
                checkpoints::write_meta(&golden, 8, shards.path());
                let options = RepackOptions { chunk_size: 1, ..RepackOptions::default() };
                let go_on = &mut |_| ControlFlow::Continue(());
                let report = repack(shards.path(), directory, options, go_on).expect("repacks");
                let names: Vec<_> = report.files.iter().map(|file| file.name.as_str()).collect();
                assert_eq!(names, ["layers_0-0.pth", "layers_1-1.pth"]);
            }),
            ("1 file", &|directory| checkpoints::write_meta(&golden, 1, directory)),
            ("Hugging Face", &|directory| checkpoints::write_hugging_face(&golden, directory)),
        ],
    );
}

#[test]
fn a_tied_model_and_a_vision_models_text_are_hugging_faces_too() {
    for name in ["3b", "11b"] {
        let golden = Golden::load(name);
        check(
            &golden,
            &[
                ("Meta", &|directory| checkpoints::write_meta(&golden, 1, directory)),
                ("Hugging Face", &|directory| checkpoints::write_hugging_face(&golden, directory)),
            ],
        );
    }
}
