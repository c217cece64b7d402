//! Values while a pickle is being read.
//!
//! A pickle may put a list into itself, or one list into another a million
//! times. So containers live in an arena and name each other by index, nothing
//! is copied or dropped recursively, and the tree is made at the end, within
//! bounds.

use std::collections::BTreeMap;

use super::tensor::{PthDtype, Storage};
use super::{PthError, PthTensor, Value};

const MAX_ITEMS: usize = 1 << 19;
const MAX_TENSORS: usize = 1 << 14;
const MAX_VALUES: usize = 1 << 17;
const MAX_TEXT_BYTES: usize = 16 << 20;
const MAX_DEPTH: usize = 32;

/// What a pickle's stack and memo hold. Text is a range of the pickle; the
/// other numbers are indices in the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Item {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str { start: usize, end: usize },
    Global(Global),
    Container(usize),
    Storage(usize),
    Tensor(usize),
}

/// The Python names that a pickle may hold. None of them is ever called: the
/// instruction that would call one makes what it stands for instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageClass(PthDtype),
}

impl Global {
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            _ => PthDtype::of_storage(module, name).map(Self::StorageClass),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tuple,
    List,
    Dict,
    /// Made by `OrderedDict()`, and may be given attributes.
    OrderedDict,
}

/// A tuple, a list, or a dictionary as keys and values in turn.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) kind: Kind,
    pub(super) items: Vec<Item>,
}

/// Everything that stack and memo refer to.
#[derive(Debug, Default)]
pub(super) struct Arena {
    containers: Vec<Container>,
    storages: Vec<Storage>,
    storage_of_key: BTreeMap<String, usize>,
    tensors: Vec<PthTensor>,
    num_items: usize,
}

impl Arena {
    pub(super) fn add(&mut self, kind: Kind, items: Vec<Item>) -> Result<Item, PthError> {
        // An empty container counts too.
        self.count(items.len() + 1)?;
        self.containers.push(Container { kind, items });
        Ok(Item::Container(self.containers.len() - 1))
    }

    /// Appends to a container that an [`Item::Container`] names.
    pub(super) fn extend(&mut self, container: usize, items: &[Item]) -> Result<(), PthError> {
        self.count(items.len())?;
        self.containers[container].items.extend_from_slice(items);
        Ok(())
    }

    pub(super) fn container(&self, index: usize) -> &Container {
        &self.containers[index]
    }

    /// The storage, which may be declared any number of times, as the same.
    pub(super) fn add_storage(&mut self, storage: Storage) -> Result<Item, PthError> {
        if let Some(&index) = self.storage_of_key.get(&storage.key) {
            let known = &self.storages[index];
            if *known == storage {
                return Ok(Item::Storage(index));
            }
            let message = format!(
                "declared as {} values of {} and as {} of {}",
                known.num_elements, known.dtype, storage.num_elements, storage.dtype
            );
            return Err(PthError::View { storage: storage.key, message });
        }
        if self.storages.len() == MAX_TENSORS {
            return Err(PthError::Limit { what: "storages", max: MAX_TENSORS as u64 });
        }
        storage.check()?;
        self.storage_of_key.insert(storage.key.clone(), self.storages.len());
        self.storages.push(storage);
        Ok(Item::Storage(self.storages.len() - 1))
    }

    pub(super) fn storage(&self, index: usize) -> &Storage {
        &self.storages[index]
    }

    pub(super) fn add_tensor(&mut self, tensor: PthTensor) -> Result<Item, PthError> {
        if self.tensors.len() == MAX_TENSORS {
            return Err(PthError::Limit { what: "tensors", max: MAX_TENSORS as u64 });
        }
        self.tensors.push(tensor);
        Ok(Item::Tensor(self.tensors.len() - 1))
    }

    fn count(&mut self, num_items: usize) -> Result<(), PthError> {
        self.num_items += num_items;
        if self.num_items > MAX_ITEMS {
            return Err(PthError::Limit { what: "values in containers", max: MAX_ITEMS as u64 });
        }
        Ok(())
    }

    /// The tree that `item` is the root of.
    pub(super) fn resolve(&self, item: Item, pickle: &[u8]) -> Result<Value, PthError> {
        Tree { arena: self, pickle, num_values: 0, text_bytes: 0 }.value(item, 0)
    }
}

/// Counts what a tree takes while it is made.
struct Tree<'a> {
    arena: &'a Arena,
    pickle: &'a [u8],
    num_values: usize,
    text_bytes: usize,
}

impl Tree<'_> {
    fn value(&mut self, item: Item, depth: usize) -> Result<Value, PthError> {
        self.num_values += 1;
        if self.num_values > MAX_VALUES {
            return Err(PthError::Limit { what: "values", max: MAX_VALUES as u64 });
        }
        if depth > MAX_DEPTH {
            return Err(PthError::Limit {
                what: "values within each other",
                max: MAX_DEPTH as u64,
            });
        }
        Ok(match item {
            Item::None => Value::None,
            Item::Bool(value) => Value::Bool(value),
            Item::Int(value) => Value::Int(value),
            Item::Float(value) => Value::Float(value),
            Item::Str { start, end } => Value::Str(self.text(start, end)?),
            Item::Tensor(index) => Value::Tensor(self.arena.tensors[index].clone()),
            Item::Container(index) => self.container(index, depth)?,
            Item::Storage(index) => {
                let storage = self.arena.storage(index).key.clone();
                let message = "a storage by itself is no value".to_owned();
                return Err(PthError::View { storage, message });
            }
            Item::Global(_) => return Err(self.malformed("a Python name is no value")),
        })
    }

    fn container(&mut self, index: usize, depth: usize) -> Result<Value, PthError> {
        let container = self.arena.container(index);
        if matches!(container.kind, Kind::Tuple | Kind::List) {
            let values = container.items.iter().map(|&item| self.value(item, depth + 1));
            return values.collect::<Result<_, _>>().map(Value::List);
        }
        let mut entries = BTreeMap::new();
        let (pairs, _) = container.items.as_chunks::<2>();
        for &[key, value] in pairs {
            let Item::Str { start, end } = key else {
                return Err(self.malformed("a dictionary has a key that is no text"));
            };
            let (key, value) = (self.text(start, end)?, self.value(value, depth + 1)?);
            if entries.contains_key(&key) {
                return Err(self.malformed(&format!("{key:?} comes twice in a dictionary")));
            }
            entries.insert(key, value);
        }
        Ok(Value::Dict(entries))
    }

    fn text(&mut self, start: usize, end: usize) -> Result<String, PthError> {
        self.text_bytes += end - start;
        if self.text_bytes > MAX_TEXT_BYTES {
            return Err(PthError::Limit { what: "bytes of text", max: MAX_TEXT_BYTES as u64 });
        }
        let text = std::str::from_utf8(&self.pickle[start..end]);
        text.map(str::to_owned).map_err(|_| self.malformed("text is not UTF-8"))
    }

    fn malformed(&self, message: &str) -> PthError {
        PthError::Pickle { position: self.pickle.len(), message: message.to_owned() }
    }
}
