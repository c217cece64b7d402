//! Directories as `torch.save` wrote them, committed whole: from PyTorch's bytes
//! to the logits of Meta's code, nothing of ours in between.

use llama::{Checkpoint, DTypePolicy, Optimizations};

use crate::compare::relative_error;
use crate::golden::{self, Golden};
use crate::run::Model;

fn check(name: &str) {
    let golden = Golden::load(name);
    let checkpoint = Checkpoint::open(&golden::directory().join(name)).expect("opens");
    for chips in [1, 2, 8] {
        let policy = DTypePolicy::choose(checkpoint.config(), Optimizations::F32);
        let found =
            Model::load(&checkpoint, chips, policy).logits(&golden.tokens, &[golden.prompt]);
        let error = relative_error(&found, &golden.logits(name));
        println!("{name} {chips} chips f32: relative error {error:.2e}");
        assert!(error <= 1e-4, "{name} {chips} chips: {error:.2e}");
    }
}

#[test]
fn a_tied_model_in_one_file_answers_as_metas_code() {
    check("micro-1b");
}

#[test]
fn a_model_in_eight_files_answers_as_metas_code() {
    check("micro-70b");
}
