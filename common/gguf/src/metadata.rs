//! The metadata of a file: an index by key, and getters that name what they wanted.

use crate::GgufError;
use crate::reader::Reader;
use crate::value::{Kind, Strings, Type, Value};

/// The fewest bytes an entry has: a length, one byte of key, a type, a one-byte value.
const MIN_ENTRY_BYTES: usize = 8 + 1 + 4 + 1;

/// The metadata of a GGUF file.
#[derive(Debug, Clone)]
pub struct Metadata<'a> {
    file: &'a [u8],
    /// Where each entry starts in the file, sorted by key.
    by_key: Vec<usize>,
}

/// One entry as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// The metadata key.
    pub key: &'a str,
    /// The value's bytes, from its type on.
    pub value: &'a [u8],
}

macro_rules! getters {
    ($($one:ident, $optional_one:ident, $many:ident, $optional_many:ident: $rust:ty = $kind:expr;)*) => {$(
        #[doc = concat!("The `", stringify!($rust), "` of `key`.")]
        ///
        /// # Errors
        /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
        pub fn $one(&self, key: &str) -> Result<$rust, GgufError> {
            self.$optional_one(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("The `", stringify!($rust), "` of `key`, or `None` if the file has no such key.")]
        ///
        /// # Errors
        /// [`GgufError::WrongType`].
        pub fn $optional_one(&self, key: &str) -> Result<Option<$rust>, GgufError> {
            let value = self.value(key, Kind::One($kind))?;
            Ok(value.and_then(|value| value.elements().next()).map(<$rust>::from_le_bytes))
        }

        #[doc = concat!("The array of `", stringify!($rust), "` of `key`.")]
        ///
        /// # Errors
        /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
        pub fn $many(&self, key: &str) -> Result<Vec<$rust>, GgufError> {
            self.$optional_many(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("The array of `", stringify!($rust), "` of `key`, or `None` if the file has no such key.")]
        ///
        /// # Errors
        /// [`GgufError::WrongType`].
        pub fn $optional_many(&self, key: &str) -> Result<Option<Vec<$rust>>, GgufError> {
            let value = self.value(key, Kind::ArrayOf($kind))?;
            Ok(value.map(|value| value.elements().map(<$rust>::from_le_bytes).collect()))
        }
    )*};
}

impl<'a> Metadata<'a> {
    getters! {
        u32, optional_u32, u32s, optional_u32s: u32 = Type::U32;
        i32, optional_i32, i32s, optional_i32s: i32 = Type::I32;
        f32, optional_f32, f32s, optional_f32s: f32 = Type::F32;
        u64, optional_u64, u64s, optional_u64s: u64 = Type::U64;
    }

    /// The boolean of `key`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.optional_bool(key)?.ok_or_else(|| missing(key))
    }

    /// The boolean of `key`, or `None` if the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        let value = self.value(key, Kind::One(Type::Bool))?;
        Ok(value.map(|value| value.bytes == [1]))
    }

    /// The string of `key`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::WrongType`] or [`GgufError::NotUtf8`].
    pub fn str(&self, key: &str) -> Result<&'a str, GgufError> {
        self.optional_str(key)?.ok_or_else(|| missing(key))
    }

    /// The string of `key`, or `None` if the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] or [`GgufError::NotUtf8`].
    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.value(key, Kind::One(Type::String))? {
            Some(value) => Ok(Strings::new(value)?.next()),
            None => Ok(None),
        }
    }

    /// The strings of the array `key`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::WrongType`] or [`GgufError::NotUtf8`].
    pub fn strings(&self, key: &str) -> Result<Strings<'a>, GgufError> {
        self.optional_strings(key)?.ok_or_else(|| missing(key))
    }

    /// The strings of the array `key`, or `None` if the file has no such key.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] or [`GgufError::NotUtf8`].
    pub fn optional_strings(&self, key: &str) -> Result<Option<Strings<'a>>, GgufError> {
        self.value(key, Kind::ArrayOf(Type::String))?.map(Strings::new).transpose()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether the file has `key`, of whatever type.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// The entries whose key starts with `prefix`, in the order of the file:
    /// what a fingerprint of that part of the metadata is computed over.
    #[must_use]
    pub fn entries_with_prefix(&self, prefix: &str) -> Vec<RawEntry<'a>> {
        let from = self.by_key.partition_point(|&at| key_at(self.file, at) < prefix);
        let mut starts: Vec<usize> = self.by_key[from..]
            .iter()
            .copied()
            .take_while(|&at| key_at(self.file, at).starts_with(prefix))
            .collect();
        starts.sort_unstable();
        starts.into_iter().filter_map(|at| self.raw(at)).collect()
    }

    /// Reads `num_entries` entries and leaves the reader after them.
    pub(crate) fn read(reader: &mut Reader<'a>, num_entries: u64) -> Result<Self, GgufError> {
        let num_entries = reader.count(num_entries, MIN_ENTRY_BYTES, "the metadata")?;
        let mut by_key = Vec::with_capacity(num_entries);
        for _ in 0..num_entries {
            by_key.push(reader.at());
            let key = reader.name("a metadata key")?;
            Value::read(reader, key)?;
        }
        let file = reader.bytes();
        by_key.sort_unstable_by(|&a, &b| key_at(file, a).cmp(key_at(file, b)));
        for pair in by_key.windows(2) {
            let key = key_at(file, pair[0]);
            if key == key_at(file, pair[1]) {
                return Err(GgufError::DuplicateKey { key: key.to_owned() });
            }
        }
        Ok(Self { file, by_key })
    }

    fn find(&self, key: &str) -> Option<usize> {
        self.by_key
            .binary_search_by(|&at| key_at(self.file, at).cmp(key))
            .ok()
            .map(|found| self.by_key[found])
    }

    fn value(&self, key: &str, expected: Kind) -> Result<Option<Value<'a>>, GgufError> {
        let Some(at) = self.find(key) else { return Ok(None) };
        let mut reader = Reader::starting_at(self.file, at);
        reader.name("a metadata key")?;
        let value = Value::read(&mut reader, key)?;
        if value.kind != expected {
            let key = key.to_owned();
            return Err(GgufError::WrongType { key, found: value.kind, expected });
        }
        Ok(Some(value))
    }

    fn raw(&self, at: usize) -> Option<RawEntry<'a>> {
        let mut reader = Reader::starting_at(self.file, at);
        let key = reader.name("a metadata key").ok()?;
        let start = reader.at();
        Value::read(&mut reader, key).ok()?;
        Some(RawEntry { key, value: &self.file[start..reader.at()] })
    }
}

/// The key of the entry at `at`. The entry was read once before its offset was
/// kept, so this reading cannot fail either; the empty string is no key.
fn key_at(file: &[u8], at: usize) -> &str {
    Reader::starting_at(file, at).name("a metadata key").unwrap_or_default()
}

fn missing(key: &str) -> GgufError {
    GgufError::MissingKey { key: key.to_owned() }
}
