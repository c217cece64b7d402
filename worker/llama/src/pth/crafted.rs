//! `.pth` files made byte by byte, for tests: as torch writes them, and as it
//! never would.

/// A storage as the pickle declares it, and its bytes in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    /// Such as `torch\nFloatStorage`.
    pub(crate) class: &'static str,
    pub(crate) numel: i64,
    pub(crate) bytes: Vec<u8>,
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) storage: usize,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// One zip entry.
#[derive(Debug, Clone)]
pub(crate) struct ZipEntry {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The types that are written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    fn class(self) -> &'static str {
        match self {
            Self::F32 => "torch\nFloatStorage",
            Self::F16 => "torch\nHalfStorage",
            Self::Bf16 => "torch\nBFloat16Storage",
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        let bytes = |&value: &f32| match self {
            Self::F32 => value.to_le_bytes().to_vec(),
            Self::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            Self::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }
}

/// A file of dense tensors, each in a storage of its own.
pub(crate) fn dense(tensors: &[(String, Vec<usize>, Vec<f32>)], dtype: Dtype) -> Vec<u8> {
    let mut storages = Vec::new();
    let mut views = Vec::new();
    for (name, shape, values) in tensors {
        let mut strides = vec![1; shape.len()];
        for n in (1..shape.len()).rev() {
            strides[n - 1] = strides[n] * shape[n] as i64;
        }
        views.push(View {
            name: name.clone(),
            storage: storages.len(),
            offset: 0,
            shape: shape.iter().map(|&size| size as i64).collect(),
            strides,
        });
        storages.push(Storage {
            class: dtype.class(),
            numel: values.len() as i64,
            bytes: dtype.encode(values),
        });
    }
    pth(&views, &storages)
}

/// A file of these tensors.
pub(crate) fn pth(views: &[View], storages: &[Storage]) -> Vec<u8> {
    zip(&entries(pickle(views, storages), storages))
}

/// The entries of a file with this pickle.
pub(crate) fn entries(pickle: Vec<u8>, storages: &[Storage]) -> Vec<ZipEntry> {
    let entry = |name: String, bytes| ZipEntry { name: format!("top/{name}"), bytes };
    let mut entries = vec![entry("data.pkl".to_owned(), pickle)];
    for (n, storage) in storages.iter().enumerate() {
        entries.push(entry(format!("data/{n}"), storage.bytes.clone()));
    }
    entries.push(entry("version".to_owned(), b"3\n".to_vec()));
    entries
}

/// A dictionary of tensors, without memo.
pub(crate) fn pickle(views: &[View], storages: &[Storage]) -> Vec<u8> {
    let mut code = b"\x80\x02}(".to_vec();
    for view in views {
        let storage = &storages[view.storage];
        push_str(&mut code, &view.name);
        code.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        push_str(&mut code, "storage");
        code.extend(format!("c{}\n", storage.class).as_bytes());
        push_str(&mut code, &view.storage.to_string());
        push_str(&mut code, "cpu");
        push_int(&mut code, storage.numel);
        code.extend(b"tQ");
        push_int(&mut code, view.offset);
        for numbers in [&view.shape, &view.strides] {
            code.push(b'(');
            numbers.iter().for_each(|&number| push_int(&mut code, number));
            code.push(b't');
        }
        code.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    code.extend(b"u.");
    code
}

pub(crate) fn push_str(code: &mut Vec<u8>, text: &str) {
    code.push(b'X');
    code.extend((text.len() as u32).to_le_bytes());
    code.extend(text.as_bytes());
}

/// As LONG1, whatever its size.
pub(crate) fn push_int(code: &mut Vec<u8>, number: i64) {
    code.extend([0x8a, 8]);
    code.extend(number.to_le_bytes());
}

/// Local headers and data, then the central directory and the end record.
pub(crate) fn zip(entries: &[ZipEntry]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for ZipEntry { name, bytes } in entries {
        let offset = file.len() as u32;
        let size = bytes.len() as u32;
        // Version, flags, method, time, date, checksum: all zero.
        let fields = |out: &mut Vec<u8>| {
            out.extend([0; 14]);
            out.extend(size.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
        };
        file.extend(b"PK\x03\x04");
        fields(&mut file);
        // Data start on multiples of 64.
        let padding = (file.len() + 2 + name.len() + 4).next_multiple_of(64)
            - (file.len() + 2 + name.len() + 4);
        file.extend((padding as u16 + 4).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(b"FB");
        file.extend((padding as u16).to_le_bytes());
        file.resize(file.len() + padding, b'Z');
        file.extend(bytes);
        directory.extend(b"PK\x01\x02\0\0");
        fields(&mut directory);
        // Lengths of extra field and comment, volume, attributes.
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (offset, num_bytes) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend(num_bytes.to_le_bytes());
    file.extend(offset.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// As [`zip`], with every size and offset in zip64 fields, as torch writes them
/// beyond 4 GiB.
pub(crate) fn zip64(entries: &[ZipEntry]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    let fields = |out: &mut Vec<u8>, name: &str| {
        out.extend([0; 14]);
        out.extend([0xff; 8]);
        out.extend((name.len() as u16).to_le_bytes());
    };
    for ZipEntry { name, bytes } in entries {
        let offset = file.len() as u64;
        let size = (bytes.len() as u64).to_le_bytes();
        file.extend(b"PK\x03\x04");
        fields(&mut file, name);
        file.extend(20_u16.to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(b"\x01\0\x10\0");
        file.extend([size, size].concat());
        file.extend(bytes);
        directory.extend(b"PK\x01\x02\0\0");
        fields(&mut directory, name);
        directory.extend(28_u16.to_le_bytes());
        directory.extend([0; 10]);
        directory.extend([0xff; 4]);
        directory.extend(name.as_bytes());
        directory.extend(b"\x01\0\x18\0");
        directory.extend([size, size, offset.to_le_bytes()].concat());
    }
    let (offset, num_bytes) = (file.len() as u64, directory.len() as u64);
    file.extend(directory);
    let end = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(44_u64.to_le_bytes());
    file.extend([0; 12]);
    for number in [entries.len() as u64, entries.len() as u64, num_bytes, offset] {
        file.extend(number.to_le_bytes());
    }
    file.extend(b"PK\x06\x07\0\0\0\0");
    file.extend(end.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([0xff; 12]);
    file.extend([0; 2]);
    file
}
