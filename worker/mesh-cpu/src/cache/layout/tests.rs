//! Encoding and refusing.

use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    Identity {
        checkpoint: "c".to_owned(),
        policy: "w1/w3 bfp4".to_owned(),
        num_chips: 2,
        packer: "1".to_owned(),
    }
}

/// A file of two weights, the first in two pieces, all bytes 7.
fn file() -> (Index, Vec<u8>) {
    let piece = |offset, num_bytes| Piece {
        format: Format::Bfp4,
        n: 16,
        k: 16,
        offset,
        num_bytes,
        checksum: 9,
    };
    let entries = vec![
        Entry { name: "a".to_owned(), pieces: vec![piece(PAGE, 144), piece(2 * PAGE, PAGE)] },
        Entry { name: "b".to_owned(), pieces: vec![piece(3 * PAGE, PAGE + 1)] },
    ];
    let index = Index { identity: identity(), entries };
    let bytes = file_of(&index, 5 * PAGE);
    (index, bytes)
}

fn file_of(index: &Index, index_offset: u64) -> Vec<u8> {
    let encoded = index.encode();
    let mut file = encode_header(index_offset, &encoded);
    file.resize(index_offset as usize, 7);
    file.extend(encoded);
    file
}

#[test]
fn a_file_is_read_as_it_is_written() {
    let (index, file) = file();
    assert_eq!(Index::of_file(&file, &identity()).unwrap(), index);
    let empty = Index { identity: identity(), entries: Vec::new() };
    assert_eq!(Index::of_file(&file_of(&empty, PAGE), &identity()).unwrap(), empty);
}

#[test]
fn a_file_for_something_else_is_stale_and_says_how() {
    let (_, file) = file();
    let cases = [
        (Identity { checkpoint: "d".into(), ..identity() }, "the checkpoint has changed"),
        (Identity { policy: "all bf16".into(), ..identity() }, "holds w1/w3 bfp4, wanted is all"),
        (Identity { num_chips: 1, ..identity() }, "for 2 chips, not 1"),
        (Identity { packer: "2".into(), ..identity() }, "packed by 1, this is 2"),
    ];
    for (wanted, how) in cases {
        let Unusable::Stale(found) = Index::of_file(&file, &wanted).unwrap_err() else {
            panic!("{wanted:?}");
        };
        assert!(found.contains(how), "{found:?} does not say {how:?}");
    }
    // Of a later program, which may have another header.
    let mut later = file;
    later[16] = 2;
    let stale = Unusable::Stale("it has format 2, this program's is 1".to_owned());
    assert_eq!(Index::of_file(&later, &identity()).unwrap_err(), stale);
}

#[test]
fn pieces_that_do_not_lie_one_after_another_are_refused() {
    type Change = fn(&mut Vec<Entry>);
    let changes: [Change; 6] = [
        |entries| entries[0].pieces[0].offset = 0,
        |entries| entries[0].pieces[1].offset += PAGE,
        |entries| entries[1].pieces[0].offset = u64::MAX,
        |entries| entries[1].pieces[0].num_bytes = u64::MAX,
        |entries| entries[1].pieces[0].num_bytes += PAGE,
        |entries| drop(entries.pop()),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let (mut index, _) = file();
        change(&mut index.entries);
        let refused = Index::of_file(&file_of(&index, 5 * PAGE), &identity());
        assert!(matches!(refused, Err(Unusable::Damaged(_))), "change {n}: {refused:?}");
    }
}

#[test]
fn counts_and_lengths_beyond_the_file_allocate_nothing() {
    let (index, _) = file();
    let encoded = index.encode();
    // Each number in turn is as large as it can be.
    for at in 0..encoded.len() - 8 {
        let mut bytes = encoded.clone();
        bytes[at..at + 8].fill(0xff);
        if let Some(decoded) = Index::decode(&bytes) {
            assert_eq!(decoded.encode(), bytes);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        header in prop::array::uniform4(any::<u64>()),
    ) {
        prop_assert!(Index::of_file(&bytes, &identity()).is_err());
        if let Some(index) = Index::decode(&bytes) {
            prop_assert_eq!(index.encode(), bytes);
        } else {
            // With a header that vouches for anything, too.
            let mut page = MAGIC.to_vec();
            header.iter().for_each(|number| page.extend(number.to_le_bytes()));
            page.resize(HEADER_SUM_AT, 0);
            page.extend(xxh3_64(&page).to_le_bytes());
            page.extend(&bytes);
            prop_assert!(Index::of_file(&page, &identity()).is_err());
            let mut file = encode_header(PAGE, &bytes);
            file.extend(&bytes);
            prop_assert!(Index::of_file(&file, &identity()).is_err());
        }
    }
}
