//! What a mesh must refuse, and how.

use crate::{AttentionShape, DType, DenseMatrix, KvCacheShape, Matrix, Mesh, MeshError};

/// Weights and heads that do not divide by the chips are
/// [`MeshError::DoesNotFit`], and the message names them and the numbers.
///
/// # Panics
/// When the law is broken.
pub fn what_does_not_divide_is_refused<M: Mesh>(mesh: &mut M) {
    let num_chips = mesh.describe().num_chips;
    let gain = mesh.load_gain(&DenseMatrix::new("model.gain", 32, vec![0.5; 64])).err();
    assert!(
        matches!(&gain, Some(MeshError::DoesNotFit(message)) if message.contains("model.gain")),
        "load_gain must refuse two rows, got {gain:?}"
    );
    if num_chips == 1 {
        return;
    }
    let odd = 32 * num_chips + 1;
    let matrix = DenseMatrix::new("model.odd.weight", odd, vec![0.5; odd * odd]);
    let fine = DenseMatrix::new("model.fine.weight", odd, vec![0.5; 32 * num_chips * odd]);
    let columns = mesh.load_column_parallel(&[&fine, &matrix], DType::F32).err();
    let rows = mesh.load_row_parallel(&matrix, DType::F32).err();
    let table = mesh.load_embedding(&matrix, DType::F32).err();
    for (what, error) in
        [("load_column_parallel", columns), ("load_row_parallel", rows), ("load_embedding", table)]
    {
        let Some(MeshError::DoesNotFit(message)) = error else {
            panic!("{what} must refuse {odd} over {num_chips} chips, got {error:?}");
        };
        for needle in ["model.odd.weight", &odd.to_string(), &num_chips.to_string()] {
            assert!(message.contains(needle), "{what}: {message:?} does not name {needle}");
        }
    }
    let cache = KvCacheShape { num_layers: 1, num_blocks: 4, block_size: 32, dtype: DType::Bf16 };
    let heads = AttentionShape {
        num_attention_heads: 2 * (num_chips + 1),
        num_key_value_heads: num_chips + 1,
        head_dim: 32,
    };
    let error = mesh.new_kv_cache(cache, heads).err();
    assert!(
        matches!(error, Some(MeshError::DoesNotFit(_))),
        "new_kv_cache must refuse {heads:?} over {num_chips} chips, got {error:?}"
    );
}

/// A matrix that cannot be read fails the load with its own error.
///
/// # Panics
/// When the law is broken.
pub fn failing_sources_are_reported<M: Mesh>(mesh: &mut M) {
    struct Unreadable;
    impl Matrix for Unreadable {
        fn name(&self) -> &str {
            "unreadable"
        }
        fn rows(&self) -> usize {
            768
        }
        fn cols(&self) -> usize {
            768
        }
        fn read_rows(&self, first_row: usize, out: &mut [f32]) -> Result<(), MeshError> {
            // The first rows are fine: the error comes in the middle.
            out.fill(0.0);
            if first_row * 768 + out.len() < 700 * 768 {
                return Ok(());
            }
            Err(MeshError::Source { name: "unreadable".into(), message: "disk gone".into() })
        }
    }
    for error in [
        mesh.load_column_parallel(&[&Unreadable], DType::Bfp8).err(),
        mesh.load_row_parallel(&Unreadable, DType::Bfp8).err(),
        mesh.load_embedding(&Unreadable, DType::Bf16).err(),
    ] {
        assert!(
            matches!(&error, Some(MeshError::Source { name, .. }) if name == "unreadable"),
            "the source's error must come through, got {error:?}"
        );
    }
}
