//! What a cache must never do is give other weights than the checkpoint.

mod model;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::sync::Barrier;

use mesh::MeshError;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use layout::PAGE;
use model::{Model, bits};

/// A directory for a cache that is made with it.
fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("CPU/performance.weights");
    (dir, path)
}

/// Files beside the cache, itself included.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Whether every weight in the file would be used.
fn is_trusted(model: &Model, path: &Path) -> bool {
    let (path, identity) = identity_of(model.file(path), model.num_chips);
    let Ok(mut reader) = Reader::open(&path, &identity) else { return false };
    let pool = Pool::new(1);
    let [q, k, v] = &model.qkv;
    [
        WeightKey::embedding(&model.embedding, model.dtype),
        WeightKey::gain(&model.gain),
        WeightKey::column_parallel(&[q, k, v], model.dtype),
        WeightKey::row_parallel(&model.down, model.dtype),
    ]
    .iter()
    .all(|key| reader.take(&pool, key).is_ok())
}

/// Offset, end, and end of the gap of every piece of a file.
fn pieces(file: &[u8], model: &Model, path: &Path) -> Vec<[usize; 3]> {
    let identity = identity_of(model.file(path), model.num_chips).1;
    let index = layout::Index::of_file(file, &identity).unwrap();
    let pieces = index.entries.iter().flat_map(|entry| &entry.pieces);
    pieces
        .map(|piece| {
            let end = (piece.offset + piece.num_bytes) as usize;
            [piece.offset as usize, end, end.next_multiple_of(PAGE as usize)]
        })
        .collect()
}

#[test]
fn the_second_load_is_the_first_bit_for_bit_and_reads_no_weight() {
    for dtype in [DType::F32, DType::Bf16, DType::Bfp8, DType::Bfp4] {
        for num_chips in [1, 2] {
            let (_dir, path) = place();
            let model = Model::new(dtype, num_chips);
            let expected = model.pack();
            let once = model.rows_read();
            let (first, weights) = model.load(&path);
            assert_eq!((first, bits(&weights)), (WeightCacheUse::Written, expected.clone()));
            assert_eq!(model.rows_read(), once.map(|rows| 2 * rows));
            let (second, weights) = model.load(&path);
            assert_eq!((second, bits(&weights)), (WeightCacheUse::Hit, expected));
            assert_eq!(model.rows_read(), once.map(|rows| 2 * rows), "{dtype}");
            assert_eq!(names(&path), ["performance.weights"]);
        }
    }
}

#[test]
fn the_file_depends_neither_on_threads_nor_on_when_it_is_written() {
    let files = [1, 3].map(|num_threads| {
        let (_dir, path) = place();
        Model { num_threads, ..Model::new(DType::Bfp8, 2) }.load(&path);
        fs::read(&path).unwrap()
    });
    assert!(files[0] == files[1]);
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp4, 2);
    model.load(&path);
    let file = fs::read(&path).unwrap();
    assert!(is_trusted(&model, &path));
    let pieces = pieces(&file, &model, &path);
    let index = pieces[pieces.len() - 1][2];
    let page = PAGE as usize;
    let mut places: Vec<usize> = (0..64).chain(page - 16..page).collect();
    places.extend(pieces.iter().flat_map(|&[start, end, next]| [start, end - 1, end, next - 1]));
    places.extend(index..file.len());
    let handle = OpenOptions::new().write(true).open(&path).unwrap();
    for at in places.into_iter().filter(|at| *at < file.len()) {
        handle.write_all_at(&[file[at] ^ 0x20], at as u64).unwrap();
        assert!(!is_trusted(&model, &path), "byte {at} of {}, index at {index}", file.len());
        handle.write_all_at(&[file[at]], at as u64).unwrap();
    }
    assert!(is_trusted(&model, &path));
    let config = ProptestConfig::with_cases(400);
    proptest!(config, |(at in 0..file.len(), flip in 1_u8..)| {
        handle.write_all_at(&[file[at] ^ flip], at as u64).unwrap();
        let trusted = is_trusted(&model, &path);
        handle.write_all_at(&[file[at]], at as u64).unwrap();
        prop_assert!(!trusted);
    });
}

#[test]
fn a_damaged_file_is_written_again() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 2);
    let (_, weights) = model.load(&path);
    let (expected, file) = (bits(&weights), fs::read(&path).unwrap());
    let pieces = pieces(&file, &model, &path);
    let index = pieces[pieces.len() - 1][2];
    let flip = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        file
    };
    let mut damaged = vec![
        ("magic", flip(3)),
        ("version", flip(16)),
        ("header", flip(25)),
        ("header's sum", flip(PAGE as usize - 1)),
        ("index", flip(index + 20)),
        ("nothing", Vec::new()),
        ("text", b"not a cache".to_vec()),
        ("a byte more", [&file[..], &[0]].concat()),
        ("zeros", vec![0; file.len()]),
    ];
    for [start, end, next] in pieces {
        damaged.extend([("payload", flip(start + 7)), ("cut", file[..start].to_vec())]);
        damaged.push(("cut inside", file[..end - 1].to_vec()));
        if end < next {
            damaged.push(("gap", flip(end)));
        }
    }
    for len in [1, 16, 4095, 4096, index, index + 1, file.len() - 1] {
        damaged.push(("cut", file[..len].to_vec()));
    }
    for (what, damaged) in damaged {
        // Another file, as a copy that went wrong is: the weights from the first
        // load are mapped from the old one in later turns.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damaged).unwrap();
        let (used, weights) = model.load(&path);
        assert_eq!((used, bits(&weights)), (WeightCacheUse::Written, expected.clone()), "{what}");
        assert!(fs::read(&path).unwrap() == file, "{what}");
        assert_eq!(names(&path), ["performance.weights"], "{what}");
    }
    assert_eq!(model.load(&path).0, WeightCacheUse::Hit);
}

#[test]
fn what_was_right_before_the_damage_is_not_packed_again() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 2);
    let (_, weights) = model.load(&path);
    let (expected, once) = (bits(&weights), model.rows_read());
    let file = fs::read(&path).unwrap();
    // In the second chip's slice of q, k and v.
    let at = pieces(&file, &model, &path)[4][0] as u64;
    let handle = OpenOptions::new().write(true).open(&path).unwrap();
    handle.write_all_at(&[file[at as usize] ^ 4], at).unwrap();
    let (used, weights) = model.load(&path);
    assert_eq!((used, bits(&weights)), (WeightCacheUse::Written, expected));
    let [embedding, gain, qkv, down] = once;
    assert_eq!(model.rows_read(), [embedding, gain, 2 * qkv, 2 * down]);
    assert!(fs::read(&path).unwrap() == file);
}

#[test]
fn a_file_of_something_else_is_written_again() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 1);
    model.load(&path);
    model.checkpoint.set("two");
    assert_eq!(model.load(&path).0, WeightCacheUse::Written);
    assert_eq!(model.load(&path).0, WeightCacheUse::Hit);
    let others = [Model::new(DType::Bfp4, 1), Model::new(DType::Bfp8, 2), {
        let mut renamed = Model::new(DType::Bfp8, 1);
        // The same fingerprint and formats, but not the same weights.
        renamed.down = model::Counted::new("other", 48, 96);
        renamed
    }];
    for other in others {
        other.checkpoint.set("two");
        let (used, weights) = other.load(&path);
        assert_eq!((used, bits(&weights)), (WeightCacheUse::Written, other.pack()));
    }
}

#[test]
fn only_a_file_of_this_model_counts_as_mapped_weights() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 1);
    let maps = || model.mesh().with_weight_cache(model.file(&path)).maps_weights();
    assert!(!maps(), "there is none");
    model.load(&path);
    assert!(maps());
    model.checkpoint.set("two");
    assert!(!maps(), "it is stale");
    model.load(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(100).unwrap();
    assert!(!maps(), "it is cut");
    fs::write(&path, b"").unwrap();
    assert!(!maps(), "it is empty");
}

#[test]
fn weights_in_use_outlive_their_file() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 2);
    model.load(&path);
    let (used, weights) = model.load(&path);
    assert_eq!(used, WeightCacheUse::Hit);
    model.checkpoint.set("two");
    assert_eq!(model.load(&path).0, WeightCacheUse::Written);
    fs::remove_file(&path).unwrap();
    assert_eq!(bits(&weights), model.pack());
}

#[test]
fn where_nothing_can_be_written_the_model_loads_without() {
    type Obstacle = fn(&Path);
    // Permissions do not bind root, but these do.
    let obstacles: [(&str, Obstacle); 4] = [
        ("the directory is a file", |path| fs::write(path.parent().unwrap(), "").unwrap()),
        ("the file is a directory", |path| fs::create_dir_all(path).unwrap()),
        ("the unfinished file is a directory", |path| {
            fs::create_dir_all(writer::unfinished_path(path)).unwrap();
        }),
        ("the directory is nowhere", |path| {
            std::os::unix::fs::symlink("nowhere/at/all", path.parent().unwrap()).unwrap();
        }),
    ];
    for (what, obstacle) in obstacles {
        let (_dir, path) = place();
        obstacle(&path);
        let model = Model::new(DType::Bfp8, 2);
        for _ in 0..2 {
            let (used, weights) = model.load(&path);
            assert_eq!((used, bits(&weights)), (WeightCacheUse::Unused, model.pack()), "{what}");
        }
    }
}

#[test]
fn a_disk_that_fails_under_way_leaves_nothing() {
    let model = Model::new(DType::Bfp8, 2);
    let pool = Pool::new(2);
    let key = WeightKey::row_parallel(&model.down, model.dtype);
    let chips = crate::chip::Chips::new(2).unwrap();
    let pack = || crate::weights::row_parallel(&pool, chips, &model.down, model.dtype);
    for fails_at_the_end in [false, true] {
        let (_dir, path) = place();
        let mut cache = WeightCache::open(model.file(&path), 2);
        let load = |cache: &mut WeightCache| bits(&[cache.load(&pool, &key, pack).unwrap()]);
        let before = load(&mut cache);
        let WeightCache::Writing { writer, .. } = &mut cache else { panic!("{cache:?}") };
        writer.refuse_writes();
        if !fails_at_the_end {
            assert_eq!(load(&mut cache), before);
            assert!(matches!(cache, WeightCache::Off));
        }
        assert_eq!(cache.finish(), WeightCacheUse::Unused);
        assert!(names(&path).is_empty());
    }
}

#[test]
fn a_load_that_fails_or_is_interrupted_leaves_nothing_that_is_taken() {
    let (_dir, path) = place();
    let broken = Model::broken();
    assert!(matches!(broken.load_unfinished(&path), Err(MeshError::Source { .. })));
    assert!(names(&path).is_empty());
    let model = Model::new(DType::Bfp8, 2);
    model.load_unfinished(&path).unwrap();
    assert!(names(&path).is_empty());

    // A process that was killed cleans nothing up, whether it had written all
    // or half of it.
    let (_other_dir, complete) = place();
    model.load(&complete);
    let complete = fs::read(complete).unwrap();
    let unfinished = writer::unfinished_path(&path);
    for len in [complete.len(), complete.len() / 2, 0] {
        fs::write(&unfinished, &complete[..len]).unwrap();
        let _ = fs::remove_file(&path);
        let before = model.rows_read();
        assert_eq!(model.load(&path).0, WeightCacheUse::Written);
        assert_ne!(model.rows_read(), before);
        assert_eq!(names(&path), ["performance.weights"]);
        assert!(fs::read(&path).unwrap() == complete);
    }
    fs::write(&unfinished, "left over").unwrap();
    assert_eq!(model.load(&path).0, WeightCacheUse::Hit);
    assert_eq!(names(&path), ["performance.weights"]);
}

#[test]
fn starts_at_once_all_work_and_leave_one_file() {
    const STARTS: usize = 4;
    for round in 0..10 {
        let (_dir, path) = place();
        let expected = Model::new(DType::Bfp8, 2).pack();
        let barrier = Barrier::new(STARTS);
        let uses: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..STARTS)
                .map(|_| {
                    scope.spawn(|| {
                        let model = Model::new(DType::Bfp8, 2);
                        barrier.wait();
                        let (used, weights) = model.load(&path);
                        assert_eq!(bits(&weights), expected);
                        used
                    })
                })
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(uses.contains(&WeightCacheUse::Written), "round {round}: {uses:?}");
        assert_eq!(names(&path), ["performance.weights"], "round {round}: {uses:?}");
        assert_eq!(Model::new(DType::Bfp8, 2).load(&path).0, WeightCacheUse::Hit);
    }
}

#[test]
fn mapped_weights_compute_what_packed_ones_do() {
    let (_dir, path) = place();
    let model = Model::new(DType::Bfp8, 1);
    let mesh = crate::CpuMesh::new(1, 2).unwrap();
    let run = |weights: &[Weight]| {
        let [table, gain, qkv, _] = weights else { panic!("four weights") };
        let x = mesh.compute.embed(table, &[3, 69, 0]);
        let h = mesh.compute.rms_norm(&x, gain, 1e-5);
        let y = mesh.compute.linear(&h, qkv);
        y.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>()
    };
    let (_, packed) = model.load(&path);
    let (used, mapped) = model.load(&path);
    assert_eq!(used, WeightCacheUse::Hit);
    assert_eq!(run(&mapped), run(&packed));
}
