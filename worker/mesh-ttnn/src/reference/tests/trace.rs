//! Recording and replaying.

use super::*;

fn host_row(ops: &mut ReferenceOps, value: f32) -> super::super::HostTensor {
    ops.pack(HostMatrix {
        shape: [1, 1, 32, 32],
        rank: 4,
        data: bf16s(&[value; 1024]),
        dtype: DataType::BFloat16,
        layout: Layout::Tile,
        spread: Spread::Replicated,
    })
    .unwrap()
}

#[test]
fn a_replay_computes_with_what_was_written_since() {
    let mut ops = ReferenceOps::new(2);
    let one = host_row(&mut ops, 1.0);
    let (x, y) = (
        ops.to_device(&one, &MemoryConfig::DRAM).unwrap(),
        ops.to_device(&one, &MemoryConfig::DRAM).unwrap(),
    );
    let step = |ops: &mut ReferenceOps| {
        let sum = ops.add(&x, &y, &MemoryConfig::DRAM).unwrap();
        let sums = ops.all_gather(&sum, &MemoryConfig::DRAM).unwrap();
        (sum, sums)
    };
    step(&mut ops);
    let counts = ops.program_counts();

    let trace = ops.begin_trace().unwrap();
    let (sum, sums) = step(&mut ops);
    assert_refused(ops.read(&sum, 0), &["records no trace"]);
    assert_refused(ops.write(&one, &x), &["records no trace"]);
    assert_refused(ops.synchronize(), &["records no trace"]);
    assert_refused(ops.to_device(&one, &MemoryConfig::DRAM), &["records no trace"]);
    ops.end_trace(trace).unwrap();
    assert_refused(ops.read(&sum, 0), &["never run"]);

    for value in [1.0, 5.0, -3.0] {
        let written = host_row(&mut ops, value);
        ops.write(&written, &x).unwrap();
        ops.execute_trace(trace).unwrap();
        ops.synchronize().unwrap();
        assert_eq!(ops.read(&sum, 1).unwrap(), vec![value + 1.0; 1024]);
        assert_eq!(ops.read(&sums, 0).unwrap(), vec![value + 1.0; 2048]);
    }
    assert_eq!(ops.program_counts(), counts, "a replay compiles nothing");

    ops.release_trace(trace).unwrap();
    assert_refused(ops.execute_trace(trace), &["a trace that was captured"]);
    assert_refused(ops.release_trace(trace), &["a trace that was captured"]);
}

#[test]
fn what_was_never_run_cannot_be_recorded() {
    let mut ops = ReferenceOps::new(1);
    let one = host_row(&mut ops, 1.0);
    let x = ops.to_device(&one, &MemoryConfig::DRAM).unwrap();
    let trace = ops.begin_trace().unwrap();
    assert_refused(ops.add(&x, &x, &MemoryConfig::DRAM), &["add", "not compiled"]);
    assert_refused(ops.begin_trace(), &["begin_trace_capture", "records no trace"]);
    ops.end_trace(trace).unwrap();
    assert_refused(ops.end_trace(trace), &["end_trace_capture"]);
}

#[test]
fn a_recorded_step_changes_nothing_until_it_is_executed() {
    let mut ops = ReferenceOps::new(1);
    let heads = super::super::heads::by_user(1, 32);
    let cache =
        ops.zeros([2, 1, 32, 32], DataType::BFloat16, Layout::Tile, &MemoryConfig::DRAM).unwrap();
    let x =
        Upload::tiles([1, 32, 1, 32], DataType::BFloat16).into(heads).reals(&mut ops, &[2.0; 1024]);
    let positions = Upload::rows([1, 1, 1, 32], DataType::Int32).rank(1).int32(&mut ops, &[-1; 32]);
    let table =
        Upload::rows([1, 1, 32, 2], DataType::Int32).rank(2).int32(&mut ops, &[1, 0].repeat(32));
    ops.paged_update_cache(&cache, &x, &positions, &table).unwrap();

    let trace = ops.begin_trace().unwrap();
    ops.paged_update_cache(&cache, &x, &positions, &table).unwrap();
    ops.end_trace(trace).unwrap();
    let mut at = vec![-1; 32];
    at[7] = 33;
    let host = ops
        .pack(HostMatrix {
            shape: [1, 1, 1, 32],
            rank: 1,
            data: HostData::Int32(at),
            dtype: DataType::Int32,
            layout: Layout::RowMajor,
            spread: Spread::Replicated,
        })
        .unwrap();
    ops.write(&host, &positions).unwrap();
    assert_eq!(ops.read(&cache, 0).unwrap(), vec![0.0; 2048]);
    ops.execute_trace(trace).unwrap();
    let mut expected = vec![0.0; 2048];
    // Page 1 of user 7 is block 0, and position 33 its row 1.
    expected[32..64].fill(2.0);
    assert_eq!(ops.read(&cache, 0).unwrap(), expected);
}

#[test]
fn what_was_allocated_after_a_trace_does_not_outlive_its_execution() {
    let mut ops = ReferenceOps::new(1);
    let one = host_row(&mut ops, 1.0);
    let x = ops.to_device(&one, &MemoryConfig::DRAM).unwrap();
    let before = ops.add(&x, &x, &MemoryConfig::DRAM).unwrap();
    let trace = ops.begin_trace().unwrap();
    let result = ops.add(&x, &x, &MemoryConfig::DRAM).unwrap();
    ops.end_trace(trace).unwrap();

    let uploaded = ops.to_device(&one, &MemoryConfig::DRAM).unwrap();
    let computed = ops.add(&x, &uploaded, &MemoryConfig::DRAM).unwrap();
    assert_eq!(ops.read(&computed, 0).unwrap(), [2.0; 1024], "until the trace is executed");
    ops.execute_trace(trace).unwrap();
    for lost in [&uploaded, &computed] {
        assert_refused(ops.read(lost, 0), &["allocated after a trace", "may overwrite it"]);
    }
    for kept in [&before, &result] {
        assert_eq!(ops.read(kept, 0).unwrap(), [2.0; 1024]);
    }
    // Written anew, it is good until the next execution.
    ops.write(&one, &uploaded).unwrap();
    assert_eq!(ops.read(&uploaded, 0).unwrap(), [1.0; 1024]);
    ops.release_trace(trace).unwrap();
}
