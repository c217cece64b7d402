//! The decoders against `gguf`'s own, bit for bit, on random blocks.

use super::*;

const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/dequant.bin");

/// One format's blocks and what they decode to.
struct Fixture<'a> {
    name: &'a str,
    blocks: &'a [u8],
    values: Vec<f32>,
}

fn fixtures() -> Vec<Fixture<'static>> {
    let mut rest = GOLDEN;
    let mut fixtures = Vec::new();
    while !rest.is_empty() {
        let length = take_u32(&mut rest);
        let name = std::str::from_utf8(take(&mut rest, length)).unwrap();
        let length = take_u32(&mut rest);
        let blocks = take(&mut rest, length);
        let length = take_u32(&mut rest);
        let values = take(&mut rest, 4 * length).as_chunks().0.iter();
        let values = values.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        fixtures.push(Fixture { name, blocks, values });
    }
    fixtures
}

fn take(rest: &mut &'static [u8], length: usize) -> &'static [u8] {
    rest.split_off(..length).unwrap()
}

fn take_u32(rest: &mut &'static [u8]) -> usize {
    u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize
}

const ALL: [Encoding; 9] = [
    Encoding::F32,
    Encoding::F16,
    Encoding::Bf16,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q8_0,
    Encoding::Q4K,
    Encoding::Q5K,
    Encoding::Q6K,
];

#[test]
fn every_format_decodes_to_the_bits_of_ggmls_own_decoder() {
    let fixtures = fixtures();
    assert_eq!(fixtures.len(), ALL.len());
    for encoding in ALL {
        let fixture = fixtures.iter().find(|f| f.name == encoding.to_string()).unwrap();
        let mut decoded = vec![0.0; fixture.values.len()];
        encoding.decode(fixture.blocks, &mut decoded);
        for (at, (found, expected)) in decoded.iter().zip(&fixture.values).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{encoding} {at}: {found} {expected}");
        }
    }
}

#[test]
fn a_row_is_whole_blocks() {
    assert_eq!(Encoding::Q4_1.row_bytes(576), Some(18 * 20));
    assert_eq!(Encoding::Q4K.row_bytes(576), None);
    assert_eq!(Encoding::Q6K.row_bytes(512), Some(420));
    assert_eq!(Encoding::F32.row_bytes(usize::MAX), None);
}

#[test]
#[should_panic(expected = "33 bytes of Q8_0 for 32 values")]
fn bytes_that_are_not_the_blocks_asked_for_are_a_bug() {
    Encoding::Q8_0.decode(&[0; 33], &mut [0.0; 32]);
}
