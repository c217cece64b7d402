//! Speed of the tokenizer on Llama 3's own vocabulary, one thread, beside the
//! plain pipeline of the `tokenizers` crate with the same vocabulary.
//!
//! `LLAMA_MESH_TEST_TOKENIZER_MODEL=…/tokenizer.model cargo bench -p gateway
//! --bench tokenize [FILTER]`. Compare ratios inside one run only. Before a text
//! is timed, both have to give the same ids.

#[path = "tokenize/corpus.rs"]
mod corpus;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use gateway::text::tokenizer::Tokenizer;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const LONG_TEXTS: [&str; 4] = ["english", "multilingual", "code", "mixed"];
const RUNS: [&str; 7] = ["a", "ab", " ", "7", "^", "日", "😀"];

static MODEL: LazyLock<PathBuf> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "a bench has no configuration to read it in")]
    let model = std::env::var("LLAMA_MESH_TEST_TOKENIZER_MODEL");
    PathBuf::from(model.expect("LLAMA_MESH_TEST_TOKENIZER_MODEL names Llama 3's tokenizer.model"))
});
static OURS: LazyLock<Tokenizer> = LazyLock::new(|| ours(&MODEL));
static PLAIN: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| plain(&MODEL));

fn main() {
    for name in LONG_TEXTS {
        let text = corpus::long_text(name);
        // Meta's tokenizer, and so ours, starts anew after so many characters.
        let chars: Vec<char> = text.chars().collect();
        for slice in chars.chunks(400_000) {
            let slice: String = slice.iter().collect();
            let plain = PLAIN.encode_fast(slice.as_str(), false).expect("encodes");
            // Not assert_eq, which would print them.
            assert!(OURS.encode_text(&slice).expect("encodes") == plain.get_ids(), "{name}");
        }
    }
    divan::main();
}

fn ours(model: &Path) -> Tokenizer {
    Tokenizer::from_meta(model.parent().expect("a file is in a directory")).expect("loads")
}

/// As a `tokenizer.json` of Llama 3 sets the crate up.
fn plain(model: &Path) -> tokenizers::Tokenizer {
    let file = std::fs::read_to_string(model).expect("reads");
    let chars = byte_alphabet();
    let token = |line: &str| {
        let base64 = line.split(' ').next().unwrap_or_default();
        let bytes = BASE64_STANDARD.decode(base64).expect("is base64");
        bytes.iter().map(|&byte| chars[usize::from(byte)]).collect::<String>()
    };
    let tokens: Vec<String> = file.lines().map(token).collect();
    let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut merges = Vec::new();
    for token in &tokens {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut pairs: Vec<_> = splits
            .filter_map(|(l, r)| Some((ids.get(l)?, ids.get(r)?, l.to_owned(), r.to_owned())))
            .collect();
        pairs.sort();
        merges.extend(pairs.into_iter().map(|(_, _, left, right)| (left, right)));
    }
    let vocab: Vocab = tokens.iter().cloned().zip(0u32..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build();
    let split = Split::new(
        SplitPattern::Regex(PATTERN.to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    );
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.expect("is consistent"));
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split.expect("is a pattern")),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
    ])));
    tokenizer
}

/// GPT-2's printable character for every byte.
fn byte_alphabet() -> Vec<char> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = (0x100..).filter_map(char::from_u32);
    let char =
        |byte| if printable(byte) { char::from(byte) } else { shifted.next().expect("endless") };
    (0..=u8::MAX).map(char).collect()
}

#[divan::bench(args = LONG_TEXTS, sample_count = 10, sample_size = 1)]
fn long_text(bencher: Bencher<'_, '_>, name: &str) {
    let text = corpus::long_text(name);
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| OURS.encode_text(black_box(&text)).expect("encodes"));
}

#[divan::bench(args = LONG_TEXTS, sample_count = 10, sample_size = 1)]
fn long_text_plain(bencher: Bencher<'_, '_>, name: &str) {
    let text = corpus::long_text(name);
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| PLAIN.encode_fast(black_box(text.as_str()), false).expect("encodes"));
}

/// A run of 16 KiB and one of 1 MiB: the same speed if time is linear.
#[divan::bench(args = RUNS, consts = [16, 1024], sample_count = 10, sample_size = 1)]
fn run<const KIB: usize>(bencher: Bencher<'_, '_>, unit: &str) {
    let text = unit.repeat(KIB * 1024 / unit.len());
    bencher
        .counter(BytesCount::of_str(&text))
        .bench_local(|| OURS.encode_text(black_box(&text)).expect("encodes"));
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn load() -> Tokenizer {
    ours(&MODEL)
}
