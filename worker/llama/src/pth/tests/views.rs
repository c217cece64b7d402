//! Tensors' views against an oracle that counts in 128 bits.

use proptest::prelude::*;

use crate::pth::archive::Entry;
use crate::pth::tensor::{PthDtype, Storage};

fn storage(num_elements: u64) -> Storage {
    let entry = Entry { offset: 64, num_bytes: num_elements.saturating_mul(2) };
    Storage { key: "0".to_owned(), dtype: PthDtype::Bf16, num_elements, entry }
}

/// Whether every element of the view lies in the storage, and there are no
/// more of them than that.
fn fits(num_elements: u64, offset: i64, shape: &[i64], strides: &[i64]) -> bool {
    let numbers = shape.iter().chain(strides).chain([&offset]);
    if shape.len() != strides.len() || shape.len() > 8 || numbers.into_iter().any(|n| *n < 0) {
        return false;
    }
    let limit = i128::from(num_elements);
    if shape.contains(&0) {
        return i128::from(offset) <= limit;
    }
    let mut elements = 1_i128;
    let mut last = i128::from(offset);
    for (&size, &stride) in shape.iter().zip(strides) {
        elements = elements.saturating_mul(size.into());
        last = last.saturating_add((i128::from(size) - 1) * i128::from(stride));
    }
    elements <= limit && last < limit
}

/// Small numbers, and those at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![
        8 => 0_i64..9,
        2 => -3_i64..40,
        1 => prop::sample::select(vec![
            i64::MIN, i64::MAX, i64::MAX / 2 + 1, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 62, -1,
        ]),
        1 => any::<i64>(),
    ]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..200, 1 => Just(1 << 33), 1 => Just(1 << 60)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn row_45_a_view_is_accepted_exactly_when_it_lies_in_its_storage(
        num_elements in count(),
        offset in number(),
        dimensions in prop::collection::vec((number(), number()), 0..5),
        missing in prop::bool::weighted(0.05),
    ) {
        let shape: Vec<_> = dimensions.iter().map(|pair| pair.0).collect();
        let mut strides: Vec<_> = dimensions.iter().map(|pair| pair.1).collect();
        if missing {
            strides.pop();
        }
        let view = storage(num_elements).view(offset, &shape, &strides);
        prop_assert_eq!(view.is_ok(), fits(num_elements, offset, &shape, &strides), "{:?}", view);
        if let Ok(view) = view {
            prop_assert!(view.num_elements() <= num_elements);
            prop_assert_eq!(view.offset, 64 + 2 * offset as u64);
        }
    }

    #[test]
    fn row_45_contiguous_views_are_those_in_row_major_order(
        shape in prop::collection::vec(0_i64..4, 0..4),
        order in any::<u64>(),
    ) {
        let mut strides = vec![1; shape.len()];
        for n in (1..shape.len()).rev() {
            strides[n - 1] = strides[n] * shape[n].max(1);
        }
        let packed = storage(1000).view(0, &shape, &strides).unwrap();
        prop_assert!(packed.is_contiguous());
        let other: Vec<_> = strides.iter().map(|stride| stride + (order % 3) as i64).collect();
        let view = storage(1000).view(0, &shape, &other).unwrap();
        let same = view.shape.contains(&0)
            || view.shape.iter().zip(&view.strides).zip(&packed.strides)
                .all(|((&size, a), b)| size == 1 || a == b);
        prop_assert_eq!(view.is_contiguous(), same);
    }
}

#[test]
fn row_45_a_storage_is_no_larger_than_its_entry() {
    let sized = |num_elements, num_bytes| {
        let entry = Entry { offset: 0, num_bytes };
        Storage { key: "0".to_owned(), dtype: PthDtype::F32, num_elements, entry }.check()
    };
    assert!(sized(4, 16).is_ok() && sized(0, 0).is_ok() && sized(3, 16).is_ok());
    assert!(sized(5, 16).is_err() && sized(4, 15).is_err() && sized(u64::MAX, 16).is_err());
    assert!(sized((1 << 62) + 1, 4).is_err());
}
