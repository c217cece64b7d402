//! The plan's arithmetic against published figures.

use proptest::prelude::*;

use super::*;
use crate::config::Llama3Size;
use crate::config::tests::{llama3, smollm2};
use crate::device::Layout;
use crate::policy::Optimizations;

const K: usize = 1024;

fn workload(context: usize) -> Workload {
    Workload { max_model_len: context, kv_tokens: context, kv_block_size: 32, prefill_chunk: 2 * K }
}

fn plan(size: Llama3Size, device: Device, preset: Optimizations, context: usize) -> DevicePlan {
    let config = llama3(size);
    let policy = DTypePolicy::choose(&config, preset);
    DevicePlan::new(&config, device, policy, workload(context)).unwrap()
}

/// 70B has bfp4 in every preset; the figures have bfp8 too.
fn all_bfp8(size: Llama3Size, device: Device, context: usize) -> DevicePlan {
    let config = llama3(size);
    let policy = DTypePolicy::choose(&config, Optimizations::Performance);
    let policy = DTypePolicy { w1_w3: DType::Bfp8, ..policy };
    DevicePlan::new(&config, device, policy, workload(context)).unwrap()
}

fn find<'a>(plan: &'a DevicePlan, name: &str) -> &'a WeightFootprint {
    plan.weights().iter().find(|weight| weight.name.ends_with(name)).unwrap()
}

/// Bytes of the matrices of a step as if nothing were padded.
fn unpadded(plan: &DevicePlan) -> f64 {
    let matrices = plan.weights().iter().filter(|weight| weight.read_each_step);
    matrices
        .map(|w| {
            let values = (w.per_chip[0] * w.per_chip[1] * w.count) as f64;
            values * w.dtype.bits_per_value() / 8.0
        })
        .sum()
}

fn embedding(plan: &DevicePlan) -> f64 {
    find(plan, "tok_embeddings").bytes as f64
}

#[test]
fn decode_bounds_with_padding_are_the_published_ones() {
    use Llama3Size::{B1, B3, B8, B70};
    for (size, bfp4, bfp8) in
        [(B1, 2058.0, 1621.0), (B3, 793.0, 623.0), (B8, 365.0, 277.0), (B70, 39.3, 29.3)]
    {
        let fast = plan(size, Device::T3K, Optimizations::Performance, K);
        let slow = all_bfp8(size, Device::T3K, K);
        for (plan, published) in [(fast, bfp4), (slow, bfp8)] {
            let bound = plan.decode_bound(0).unwrap();
            // Given with three or four digits.
            assert!((bound - published).abs() < published * 2e-3, "{size}: {bound} {published}");
            assert!(plan.decode_bound(K).unwrap() < bound);
        }
    }
}

#[test]
fn bytes_of_a_step_without_padding_are_the_published_ones() {
    use Llama3Size::{B1, B3, B8, B11, B70};
    // GB over all chips: bfp8 throughout, and with w1 and w3 in bfp4.
    let rows = [
        (B1, 1.313, 1.045),
        (B3, 3.413, 2.709),
        (B8, 7.974, 6.095),
        (B11, 7.974, 6.095),
        (B70, 73.846, 55.055),
    ];
    for (size, bfp8, bfp4) in rows {
        for device in Device::CARDS {
            if size == B70 && device != Device::T3K {
                continue;
            }
            let chips = device.num_chips() as f64;
            let total = chips * unpadded(&all_bfp8(size, device, K)) / 1e9;
            assert!((total - bfp8).abs() < 0.001, "{size} {device}: {total}");
            let total = chips * unpadded(&plan(size, device, Optimizations::Performance, K)) / 1e9;
            assert!((total - bfp4).abs() < 0.001, "{size} {device}: {total}");
        }
    }
}

#[test]
fn memory_of_a_chip_is_the_published_one() {
    use Llama3Size::{B1, B3, B8, B70};
    // Weights and the chip's share of the embedding, GB, without padding.
    let rows = [
        (B1, Device::N150, 1.6, 1.8),
        (B3, Device::N150, 3.5, 4.2),
        (B8, Device::N150, 7.1, 9.0),
        (B8, Device::N300, 3.6, 4.5),
        (B8, Device::T3K, 0.9, 1.1),
        (B70, Device::T3K, 7.1, 9.5),
    ];
    for (size, device, performance, bfp8) in rows {
        let fast = plan(size, device, Optimizations::Performance, K);
        for (plan, published) in [(fast, performance), (all_bfp8(size, device, K), bfp8)] {
            let gb = (unpadded(&plan) + embedding(&plan)) / 1e9;
            assert!((gb - published).abs() < 0.05 + 1e-9, "{size} {device}: {gb} {published}");
        }
    }
    // With padding, 70B in bfp8 takes 10.1 GB.
    let plan = all_bfp8(B70, Device::T3K, K);
    let gb = (plan.step_bytes() as f64 + embedding(&plan)) / 1e9;
    assert!((gb - 10.1).abs() < 0.05, "{gb}");
}

#[test]
fn a_users_keys_and_values_at_128k_are_the_published_ones() {
    use Llama3Size::{B1, B3, B8, B70};
    let rows: [(_, &[f64]); 4] = [
        (B1, &[2.28, 1.14, 0.29]),
        (B3, &[7.99, 3.99, 1.00]),
        (B8, &[9.13, 4.56, 1.14]),
        (B70, &[2.85]),
    ];
    for (size, published) in rows {
        let devices = &Device::CARDS[3 - published.len()..];
        for (&device, &published) in devices.iter().zip(published) {
            let bytes = plan(size, device, Optimizations::Performance, 128 * K).cache_bytes();
            let gb = bytes as f64 / 1e9;
            assert!((gb - published).abs() < 0.0051, "{size} {device}: {gb} {published}");
        }
    }
}

#[test]
fn collective_traffic_of_a_step_is_the_published_one() {
    use Llama3Size::{B1, B3, B8, B70};
    // MB that a chip receives, on N300 and T3K.
    for (size, n300, t3k) in
        [(B1, 4.2, 7.3), (B3, 11.0, 19.3), (B8, 16.8, 29.4), (B70, f64::NAN, 146.8)]
    {
        for (device, published) in [(Device::N300, n300), (Device::T3K, t3k)] {
            if published.is_nan() {
                continue;
            }
            let plan = plan(size, device, Optimizations::Performance, K);
            let mb = plan.received_bytes() as f64 / 1e6;
            assert!((mb - published).abs() < 0.06, "{size} {device}: {mb}");
        }
    }
    let one = plan(B8, Device::N150, Optimizations::Performance, K);
    assert_eq!((one.collectives(), one.received_bytes()), (vec![], 0));
}

#[test]
fn the_lm_head_is_read_in_slices() {
    for (device, slices, columns) in [(Device::N150, 4, 128_256), (Device::N300, 2, 64_128)] {
        let plan = plan(Llama3Size::B8, device, Optimizations::Performance, K);
        let head = find(&plan, "output");
        assert_eq!((head.slices, head.per_chip), (slices, [4096, columns]));
        // 32064 columns are padded to 32256 in each slice.
        let slice = Layout::WidthSharded.bytes([4096, 32_256], DType::Bfp8);
        assert_eq!(head.bytes, slices as u64 * slice);
    }
    let plan = plan(Llama3Size::B8, Device::T3K, Optimizations::Performance, K);
    assert_eq!((find(&plan, "output").slices, find(&plan, "output").per_chip[1]), (1, 16_032));
}

#[test]
fn the_output_projection_lies_as_it_is_cut() {
    let wo = |size, device| {
        let plan = plan(size, device, Optimizations::Performance, K);
        let wo = find(&plan, "wo");
        (wo.split, wo.layout, wo.per_chip)
    };
    let (ring, linear) = (Layout::Interleaved, Layout::WidthSharded);
    assert_eq!(wo(Llama3Size::B70, Device::T3K), (Split::Output, ring, [8192, 1024]));
    assert_eq!(wo(Llama3Size::B3, Device::T3K), (Split::Input, linear, [384, 3072]));
    assert_eq!(wo(Llama3Size::B8, Device::N300), (Split::Input, linear, [2048, 4096]));
}

#[test]
fn what_fits_a_chip_is_what_is_known_to_fit() {
    use Llama3Size::{B1, B3, B8, B70};
    use Optimizations::{Accuracy, F32, Performance};
    for (size, device, context) in [
        (B1, Device::N150, 128 * K),
        (B3, Device::N150, 128 * K),
        (B8, Device::N150, 32 * K),
        (B8, Device::N300, 128 * K),
        (B70, Device::T3K, 128 * K),
    ] {
        plan(size, device, Performance, context).check(None).unwrap();
    }
    // 70B with an MLP in bfp8 exceeds its chips with a cache of 128k.
    assert!(all_bfp8(B70, Device::T3K, 128 * K).check(None).is_err());
    // The table stops 8B on one chip at 32k, and says who does not.
    let error = plan(B8, Device::N150, Performance, 64 * K).check(None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "max_model_len is 65536, the most on N150 is 32768; N300 and T3K allow it"
    );
    // 3B in accuracy has room for less than 128k on one chip.
    let long = plan(B3, Device::N150, Accuracy, 128 * K);
    let longest = long.longest_context(1, None);
    assert!((96 * K..128 * K).contains(&longest), "{longest}");
    plan(B3, Device::N150, Accuracy, longest).check(None).unwrap();
    assert!(plan(B3, Device::N150, Accuracy, longest + 32).check(None).is_err());
    let text = long.check(None).unwrap_err().to_string();
    for part in ["12.47 GB", "on each chip of N150", "--optimizations performance", "--device N300"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Nothing makes 8B in f32 fit one chip but other formats or more chips.
    let wide = plan(B8, Device::N150, F32, K);
    assert_eq!(wide.longest_context(1, None), 0);
    let text = wide.check(None).unwrap_err().to_string();
    assert!(text.contains("performance") && text.contains("T3K"), "{text}");
}

#[test]
fn the_host_holds_every_chips_slices_and_what_is_replicated_once() {
    let config = smollm2();
    let policy = DTypePolicy::choose(&config, Optimizations::F32);
    let on = |num_chips| {
        let workload = Workload { prefill_chunk: 256, ..workload(2 * K) };
        DevicePlan::new(&config, Device::Cpu { num_chips }, policy, workload).unwrap()
    };
    let (one, three) = (on(1), on(3));
    assert_eq!(one.total_weight_bytes(), three.total_weight_bytes());
    assert_eq!(one.cache_bytes(), 3 * three.cache_bytes());
    // 134,515,008 parameters and the tied table once more, in f32, and the
    // rotary tables.
    let tables = 2 * 2 * K as u64 * 32 * 4;
    assert_eq!(one.total_weight_bytes(), 4 * (134_515_008 + 49_152 * 576) + tables);
    assert!(one.check(Some(one.total_bytes())).is_ok());
    let error = one.check(Some(one.total_bytes() - 1)).unwrap_err().to_string();
    assert!(error.contains("of this machine's memory"), "{error}");
    assert!(error.contains("--optimizations performance"), "{error}");
    assert!(one.check(None).is_ok());
    assert_eq!(one.decode_bound(0), None);
}

proptest! {
    #[test]
    fn chips_hold_the_whole_model_and_padding_only_adds(
        size in proptest::sample::select(&Llama3Size::ALL[..4]),
        device in proptest::sample::select(&Device::CARDS[..]),
        preset in proptest::sample::select(vec![
            Optimizations::Performance, Optimizations::Accuracy, Optimizations::Bf16,
        ]),
        blocks in 1_usize..512,
    ) {
        let plan = plan(size, device, preset, 32 * blocks);
        for w in plan.weights() {
            let whole = w.shape[0] * w.shape[1];
            let held = w.per_chip[0] * w.per_chip[1] * device.num_chips();
            let copies = if w.split == Split::Replicated { device.num_chips() } else { 1 };
            prop_assert_eq!(held, whole * copies, "{}", w.name);
            let exact = (w.per_chip[0] * w.per_chip[1]) as f64 * w.dtype.bits_per_value() / 8.0;
            prop_assert!(w.bytes as f64 >= exact, "{} {} {exact}", w.name, w.bytes);
            prop_assert!(w.bytes as f64 <= 1.3 * exact + 4096.0 * 12.0, "{}", w.name);
        }
        let longest = plan.longest_context(1, None);
        if longest > 0 {
            let workload = Workload { max_model_len: longest, kv_tokens: longest, ..plan.workload() };
            let longest = DevicePlan::new(plan.config(), device, *plan.policy(), workload).unwrap();
            prop_assert!(longest.check(None).is_ok());
        }
        prop_assert_eq!(plan.check(None).is_ok(), longest >= 32 * blocks);
    }
}
