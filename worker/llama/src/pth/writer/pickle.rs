//! The pickle of a dictionary of tensors, as Python's pickler writes it for
//! `torch.save`: protocol 2, every object noted for later reference.

use super::{Declared, Value};
use crate::pth::PthDtype;

/// Python's pickler puts so many pairs into a dictionary at once.
const PAIRS_AT_ONCE: usize = 1000;

/// Python objects that several tensors refer to, by their place in the memo.
#[derive(Debug, Default)]
struct Shared {
    rebuild: Option<u32>,
    storage: Option<u32>,
    /// Storage classes, by type of values.
    classes: Vec<(PthDtype, u32)>,
    location: Option<u32>,
    ordered_dict: Option<u32>,
    /// Memo place of each declared tensor.
    tensors: Vec<u32>,
}

/// `data.pkl` for these tensors; storages are numbered in their order.
pub(super) fn dictionary(tensors: &[Declared]) -> Vec<u8> {
    let mut pickle = Pickle::default();
    let mut shared = Shared::default();
    let mut num_storages = 0;
    pickle.bytes.extend([0x80, 2]);
    pickle.op(b'}');
    pickle.memoize();
    let mut pair = |pickle: &mut Pickle, declared: &Declared| {
        pickle.string(&declared.name);
        pickle.memoize();
        let place = match &declared.value {
            Value::Alias(index) => {
                let place = shared.tensors[*index];
                pickle.get(place);
                place
            }
            Value::Tensor { dtype, shape, num_values } => {
                let key = num_storages.to_string();
                num_storages += 1;
                pickle.tensor(&mut shared, *dtype, (&key, *num_values), shape)
            }
        };
        shared.tensors.push(place);
    };
    if let [only] = tensors {
        pair(&mut pickle, only);
        pickle.op(b's');
    } else {
        let mut rest = tensors;
        let mut is_full = !tensors.is_empty();
        // After a full batch comes another, be it empty.
        while is_full {
            let (batch, after) = rest.split_at(rest.len().min(PAIRS_AT_ONCE));
            pickle.op(b'(');
            batch.iter().for_each(|declared| pair(&mut pickle, declared));
            pickle.op(b'u');
            (rest, is_full) = (after, batch.len() == PAIRS_AT_ONCE);
        }
    }
    pickle.op(b'.');
    pickle.bytes
}

/// Instructions, written one after the other.
#[derive(Debug, Default)]
struct Pickle {
    bytes: Vec<u8>,
    num_memoized: u32,
}

impl Pickle {
    fn op(&mut self, code: u8) {
        self.bytes.push(code);
    }

    /// Notes the object that was just made; returns its place.
    fn memoize(&mut self) -> u32 {
        let place = self.num_memoized;
        self.num_memoized += 1;
        self.reference(b'q', b'r', place);
        place
    }

    fn get(&mut self, place: u32) {
        self.reference(b'h', b'j', place);
    }

    fn reference(&mut self, short: u8, long: u8, place: u32) {
        match u8::try_from(place) {
            Ok(place) => self.bytes.extend([short, place]),
            Err(_) => {
                self.op(long);
                self.bytes.extend(place.to_le_bytes());
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.op(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn integer(&mut self, value: u64) {
        if let Ok(value) = u8::try_from(value) {
            self.bytes.extend([b'K', value]);
        } else if let Ok(value) = u16::try_from(value) {
            self.op(b'M');
            self.bytes.extend(value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value) {
            self.op(b'J');
            self.bytes.extend(value.to_le_bytes());
        } else {
            // As few bytes as hold the number and a sign bit.
            let num_bytes = (u64::BITS - value.leading_zeros()) / 8 + 1;
            let wide = u128::from(value).to_le_bytes();
            self.bytes.extend([0x8a, num_bytes as u8]);
            self.bytes.extend(&wide[..num_bytes as usize]);
        }
    }

    fn integers(&mut self, values: &[u64]) {
        if values.len() > 3 {
            self.op(b'(');
        }
        values.iter().for_each(|&value| self.integer(value));
        self.op(match values.len() {
            0 => b')',
            1 => 0x85,
            2 => 0x86,
            3 => 0x87,
            _ => b't',
        });
        // Python has one empty tuple, and does not note it.
        if !values.is_empty() {
            self.memoize();
        }
    }

    /// What is made once and referred to afterwards.
    fn once(&mut self, place: &mut Option<u32>, make: impl FnOnce(&mut Self)) {
        if let Some(place) = *place {
            self.get(place);
        } else {
            make(self);
            *place = Some(self.memoize());
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").bytes());
    }

    fn class(&mut self, shared: &mut Shared, dtype: PthDtype) {
        let mut place = shared.classes.iter().find(|(known, _)| *known == dtype).map(|&(_, at)| at);
        let is_new = place.is_none();
        self.once(&mut place, |pickle| pickle.global("torch", storage_class(dtype)));
        if let (true, Some(place)) = (is_new, place) {
            shared.classes.push((dtype, place));
        }
    }

    /// A call that makes a contiguous tensor of the whole of a storage.
    fn tensor(
        &mut self,
        shared: &mut Shared,
        dtype: PthDtype,
        (key, num_values): (&str, u64),
        shape: &[u64],
    ) -> u32 {
        self.once(&mut shared.rebuild, |p| p.global("torch._utils", "_rebuild_tensor_v2"));
        self.bytes.extend(b"((");
        self.once(&mut shared.storage, |p| p.string("storage"));
        self.class(shared, dtype);
        self.string(key);
        self.memoize();
        self.once(&mut shared.location, |p| p.string("cpu"));
        self.integer(num_values);
        self.op(b't');
        self.memoize();
        // The tuple is the name of a storage, from the first value on.
        self.op(b'Q');
        self.integer(0);
        self.integers(shape);
        self.integers(&strides(shape));
        // No gradient, no hooks.
        self.op(0x89);
        self.once(&mut shared.ordered_dict, |p| p.global("collections", "OrderedDict"));
        self.bytes.extend(b")R");
        self.memoize();
        self.op(b't');
        self.memoize();
        self.op(b'R');
        self.memoize()
    }
}

/// Name of torch's class of storages.
fn storage_class(dtype: PthDtype) -> &'static str {
    match dtype {
        PthDtype::Bf16 => "BFloat16Storage",
        PthDtype::F16 => "HalfStorage",
        PthDtype::F32 => "FloatStorage",
        PthDtype::F64 => "DoubleStorage",
        PthDtype::I64 => "LongStorage",
        PthDtype::I32 => "IntStorage",
        PthDtype::I16 => "ShortStorage",
        PthDtype::I8 => "CharStorage",
        PthDtype::U8 => "ByteStorage",
        PthDtype::Bool => "BoolStorage",
    }
}

/// Values from one index to the next, per dimension.
fn strides(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        // Torch counts a dimension of no values as one.
        strides[dimension - 1] = strides[dimension] * shape[dimension].max(1);
    }
    strides
}
