//! A pickle, read as data.
//!
//! Python's pickle is a program for a small stack machine that may name and call
//! anything. This machine knows the instructions that describe tensors, and
//! four kinds of names; it cannot call, look up or make anything else. Whatever
//! it does not know ends the reading, by name.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::archive::Entry;
use super::arena::{Arena, Global, Item, Kind};
use super::opcode::{self, Opcode};
use super::tensor::Storage;
use super::{PthError, Value};

const PROTOCOL: u8 = 2;
const MAX_STACK: usize = 1 << 17;
const MAX_MEMO: usize = 1 << 18;
const MAX_MARKS: usize = 64;
/// Of a Python name; of any text otherwise, [`MAX_TEXT_BYTES`].
const MAX_NAME_BYTES: usize = 256;
const MAX_TEXT_BYTES: usize = 1 << 16;

/// The value that `pickle` describes, with tensors in these storages.
pub(super) fn read(pickle: &[u8], storages: &BTreeMap<&str, Entry>) -> Result<Value, PthError> {
    let mut machine = Machine {
        pickle,
        position: 0,
        storages,
        arena: Arena::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    };
    let root = machine.run()?;
    machine.arena.resolve(root, pickle)
}

struct Machine<'a> {
    pickle: &'a [u8],
    position: usize,
    storages: &'a BTreeMap<&'a str, Entry>,
    arena: Arena,
    stack: Vec<Item>,
    /// Heights of the stack at which a group of items starts.
    marks: Vec<usize>,
    /// Every pickler counts its memo's keys from 0.
    memo: Vec<Item>,
}

impl Machine<'_> {
    /// Steps until STOP; returns what is left then.
    fn run(&mut self) -> Result<Item, PthError> {
        if self.pickle.first_chunk() != Some(&[0x80, PROTOCOL]) {
            return self.fail(format!("it does not start as protocol {PROTOCOL}, torch's default"));
        }
        loop {
            let position = self.position;
            let [byte] = self.take()?;
            let Some(opcode) = Opcode::from_byte(byte) else {
                return Err(PthError::Opcode { opcode: opcode::name(byte), position });
            };
            if opcode != Opcode::Stop {
                self.step(opcode)?;
                continue;
            }
            return match *self.stack {
                [root] if self.marks.is_empty() && self.position == self.pickle.len() => Ok(root),
                _ => self.fail("it stops with values or bytes left over"),
            };
        }
    }

    fn step(&mut self, opcode: Opcode) -> Result<(), PthError> {
        match opcode {
            Opcode::Proto => match self.take()? {
                [PROTOCOL] => Ok(()),
                [other] => self.fail(format!("protocol {other}, must be {PROTOCOL}")),
            },
            Opcode::Stop => self.fail("it stops twice"),
            Opcode::Mark => self.mark(),
            Opcode::None => self.push(Item::None),
            Opcode::NewTrue => self.push(Item::Bool(true)),
            Opcode::NewFalse => self.push(Item::Bool(false)),
            Opcode::BinInt | Opcode::BinInt1 | Opcode::BinInt2 | Opcode::Long1 => {
                let value = self.int(opcode)?;
                self.push(Item::Int(value))
            }
            Opcode::BinFloat => {
                let bytes = self.take()?;
                self.push(Item::Float(f64::from_be_bytes(bytes)))
            }
            Opcode::BinUnicode => self.text(),
            Opcode::EmptyTuple => self.make(Kind::Tuple, 0),
            Opcode::Tuple1 => self.make(Kind::Tuple, 1),
            Opcode::Tuple2 => self.make(Kind::Tuple, 2),
            Opcode::Tuple3 => self.make(Kind::Tuple, 3),
            Opcode::Tuple => {
                let items = self.pop_to_mark()?;
                self.push_container(Kind::Tuple, items)
            }
            Opcode::EmptyList => self.make(Kind::List, 0),
            Opcode::EmptyDict => self.make(Kind::Dict, 0),
            Opcode::Append => {
                let item = self.pop()?;
                self.append(&[item])
            }
            Opcode::Appends => {
                let items = self.pop_to_mark()?;
                self.append(&items)
            }
            Opcode::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])
            }
            Opcode::SetItems => {
                let items = self.pop_to_mark()?;
                self.set(&items)
            }
            Opcode::BinPut | Opcode::BinGet | Opcode::LongBinPut | Opcode::LongBinGet => {
                self.memo(opcode)
            }
            Opcode::Global => self.global(),
            Opcode::BinPersId => self.storage(),
            Opcode::Reduce => self.reduce(),
            Opcode::Build => self.build(),
        }
    }

    fn int(&mut self, opcode: Opcode) -> Result<i64, PthError> {
        Ok(match opcode {
            Opcode::BinInt1 => self.take::<1>()?[0].into(),
            Opcode::BinInt2 => u16::from_le_bytes(self.take()?).into(),
            Opcode::BinInt => i32::from_le_bytes(self.take()?).into(),
            _ => {
                let [num_bytes] = self.take()?;
                if num_bytes > 8 {
                    return self
                        .fail(format!("an integer of {num_bytes} bytes, at most 8 are read"));
                }
                let bytes = self.slice(num_bytes.into())?;
                // The last byte's sign fills the rest.
                let fill = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                i64::from_le_bytes(wide)
            }
        })
    }

    fn text(&mut self) -> Result<(), PthError> {
        let num_bytes = u32::from_le_bytes(self.take()?) as usize;
        if num_bytes > MAX_TEXT_BYTES {
            return self
                .fail(format!("text of {num_bytes} bytes, at most {MAX_TEXT_BYTES} are read"));
        }
        let start = self.position;
        self.slice(num_bytes)?;
        self.push(Item::Str { start, end: self.position })
    }

    fn memo(&mut self, opcode: Opcode) -> Result<(), PthError> {
        let key = match opcode {
            Opcode::BinPut | Opcode::BinGet => self.take::<1>()?[0].into(),
            _ => u32::from_le_bytes(self.take()?) as usize,
        };
        if matches!(opcode, Opcode::BinGet | Opcode::LongBinGet) {
            let Some(&item) = self.memo.get(key) else {
                return self.fail(format!("memo {key} was never put"));
            };
            return self.push(item);
        }
        let item = self.top()?;
        if key >= MAX_MEMO {
            return Err(PthError::Limit { what: "memo entries", max: MAX_MEMO as u64 });
        }
        match key.cmp(&self.memo.len()) {
            Ordering::Less => self.memo[key] = item,
            Ordering::Equal => self.memo.push(item),
            Ordering::Greater => {
                return self.fail(format!("memo {key} is put before the one that precedes it"));
            }
        }
        Ok(())
    }

    fn global(&mut self) -> Result<(), PthError> {
        let module = self.line()?;
        let name = self.line()?;
        match Global::named(&module, &name) {
            Some(global) => self.push(Item::Global(global)),
            None => Err(PthError::Global { module, name }),
        }
    }

    /// A persistent id: `("storage", class, key, location, numel)`. The
    /// location is where the storage was, and means nothing here.
    fn storage(&mut self) -> Result<(), PthError> {
        let id = self.pop()?;
        let [kind, class, key, _, numel] = *self.tuple(id)? else {
            return self.fail("a persistent id is not a tuple of 5");
        };
        let (
            Some("storage"),
            Item::Global(Global::StorageClass(dtype)),
            Some(key),
            Item::Int(numel),
        ) = (self.str(kind), class, self.str(key), numel)
        else {
            return self.fail("a persistent id is not that of a tensor's storage");
        };
        let Some(&entry) = self.storages.get(key) else {
            return self.fail(format!("storage {key:?} is not in the archive"));
        };
        let Ok(num_elements) = u64::try_from(numel) else {
            return self.fail(format!("storage {key:?} has {numel} values"));
        };
        let storage = Storage { key: key.to_owned(), dtype, num_elements, entry };
        let item = self.arena.add_storage(storage)?;
        self.push(item)
    }

    /// Makes what the one call stands for; nothing is called.
    fn reduce(&mut self) -> Result<(), PthError> {
        let args = self.pop()?;
        let Item::Global(global) = self.pop()? else {
            return self.fail("REDUCE calls something that is no Python name");
        };
        let args = self.tuple(args)?;
        let made = match (global, args) {
            (Global::OrderedDict, []) => self.arena.add(Kind::OrderedDict, Vec::new())?,
            (Global::RebuildTensor, &[storage, offset, size, stride, _, _]) => {
                let (Item::Storage(storage), Item::Int(offset)) = (storage, offset) else {
                    return self.fail("a tensor without storage or offset");
                };
                let (size, stride) = (self.ints(size)?, self.ints(stride)?);
                let tensor = self.arena.storage(storage).view(offset, &size, &stride)?;
                self.arena.add_tensor(tensor)?
            }
            (Global::RebuildParameter, &[tensor @ Item::Tensor(_), _, _]) => tensor,
            (global, args) => {
                return self.fail(format!("{global:?} with {} unexpected arguments", args.len()));
            }
        };
        self.push(made)
    }

    /// The attributes of a module's dictionary say which versions its parts
    /// had. They are no weights, and are dropped.
    fn build(&mut self) -> Result<(), PthError> {
        let is = |machine: &Self, item, kinds: &[Kind]| match item {
            Item::Container(index) => kinds.contains(&machine.arena.container(index).kind),
            _ => false,
        };
        let state = self.pop()?;
        let target = self.top()?;
        if is(self, state, &[Kind::Dict]) && is(self, target, &[Kind::OrderedDict]) {
            return Ok(());
        }
        self.fail("BUILD on something other than an OrderedDict, or of something other than a dict")
    }

    fn append(&mut self, items: &[Item]) -> Result<(), PthError> {
        match self.top()? {
            Item::Container(index) if self.arena.container(index).kind == Kind::List => {
                self.arena.extend(index, items)
            }
            _ => self.fail("an item is appended to something other than a list"),
        }
    }

    fn set(&mut self, items: &[Item]) -> Result<(), PthError> {
        if !items.len().is_multiple_of(2) {
            return self.fail("a key without a value");
        }
        match self.top()? {
            Item::Container(index)
                if matches!(self.arena.container(index).kind, Kind::Dict | Kind::OrderedDict) =>
            {
                self.arena.extend(index, items)
            }
            _ => self.fail("an entry is set in something other than a dictionary"),
        }
    }

    fn make(&mut self, kind: Kind, num_items: usize) -> Result<(), PthError> {
        let mut items = vec![Item::None; num_items];
        for item in items.iter_mut().rev() {
            *item = self.pop()?;
        }
        self.push_container(kind, items)
    }

    fn push_container(&mut self, kind: Kind, items: Vec<Item>) -> Result<(), PthError> {
        let container = self.arena.add(kind, items)?;
        self.push(container)
    }

    fn tuple(&self, item: Item) -> Result<&[Item], PthError> {
        match item {
            Item::Container(index) if self.arena.container(index).kind == Kind::Tuple => {
                Ok(&self.arena.container(index).items)
            }
            _ => self.fail("something other than a tuple where there must be one"),
        }
    }

    fn ints(&self, item: Item) -> Result<Vec<i64>, PthError> {
        let items = self.tuple(item)?.iter().map(|item| match item {
            Item::Int(value) => Ok(*value),
            _ => self.fail("a size or stride that is no integer"),
        });
        items.collect()
    }

    fn str(&self, item: Item) -> Option<&str> {
        match item {
            Item::Str { start, end } => std::str::from_utf8(&self.pickle[start..end]).ok(),
            _ => None,
        }
    }

    fn push(&mut self, item: Item) -> Result<(), PthError> {
        if self.stack.len() == MAX_STACK {
            return Err(PthError::Limit { what: "values on the stack", max: MAX_STACK as u64 });
        }
        self.stack.push(item);
        Ok(())
    }

    fn top(&self) -> Result<Item, PthError> {
        let above = self.stack.get(self.marks.last().copied().unwrap_or(0)..);
        match above.and_then(<[Item]>::last) {
            Some(&item) => Ok(item),
            None => self.fail("the stack is empty"),
        }
    }

    fn pop(&mut self) -> Result<Item, PthError> {
        let item = self.top()?;
        self.stack.pop();
        Ok(item)
    }

    fn mark(&mut self) -> Result<(), PthError> {
        if self.marks.len() == MAX_MARKS {
            return Err(PthError::Limit { what: "marks", max: MAX_MARKS as u64 });
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Item>, PthError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.fail("there is no mark"),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PthError> {
        let bytes = self.slice(N)?;
        Ok(*bytes.first_chunk().expect("a slice of N bytes"))
    }

    fn slice(&mut self, num_bytes: usize) -> Result<&[u8], PthError> {
        let start = self.position;
        match self.pickle[start..].get(..num_bytes) {
            Some(bytes) => {
                self.position += num_bytes;
                Ok(bytes)
            }
            None => self.fail("it ends within an instruction"),
        }
    }

    fn line(&mut self) -> Result<String, PthError> {
        let rest = &self.pickle[self.position..];
        let rest = &rest[..rest.len().min(MAX_NAME_BYTES)];
        let Some(num_bytes) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.fail(format!("a Python name beyond {MAX_NAME_BYTES} bytes"));
        };
        self.position += num_bytes + 1;
        Ok(String::from_utf8_lossy(&rest[..num_bytes]).into_owned())
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, PthError> {
        Err(PthError::Pickle { position: self.position, message: message.into() })
    }
}
