//! Pickles that were made to do harm.

use super::*;

/// A file with this pickle, after its protocol, and one storage of 16 bytes.
fn with_pickle(code: &[u8]) -> Vec<u8> {
    let (_, storages) = one_tensor();
    crafted::zip(&crafted::entries([b"\x80\x02", code].concat(), &storages))
}

fn check(cases: &[(&str, Vec<u8>)], message: impl Fn(&PthError) -> bool) {
    for (name, bytes) in cases {
        let error = refused(bytes);
        assert!(message(&error), "{name}: {error}");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn row_43_names_of_python_are_refused_and_never_looked_up() {
    let marker = std::env::temp_dir().join(format!("row-43-{}", std::process::id()));
    let shell = format!("touch {}", marker.display());
    let command = |global: &str| {
        let mut code = format!("c{global}\n").into_bytes();
        crafted::push_str(&mut code, &shell);
        code.extend(b"\x85R.");
        with_pickle(&code)
    };
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("importlib", "import_module"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch", "QUInt8Storage"),
        ("torch", "ComplexFloatStorage"),
        ("collections", "defaultdict"),
        ("collections.OrderedDict", "x"),
        ("", ""),
    ] {
        match refused(&command(&format!("{module}\n{name}"))) {
            PthError::Global { module: m, name: n } => assert_eq!((&*m, &*n), (module, name)),
            other => panic!("{module}.{name}: {other}"),
        }
    }
    assert!(!marker.exists(), "a command was run");
}

#[test]
fn row_43_instructions_that_tensors_do_not_need_are_refused_by_name() {
    let cases: [(&str, &[u8]); 26] = [
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(ccollections\nOrderedDict\no."),
        ("NEWOBJ", b"ccollections\nOrderedDict\n)\x81."),
        ("NEWOBJ_EX", b"ccollections\nOrderedDict\n)}\x92."),
        ("STACK_GLOBAL", b"X\x02\0\0\0osX\x06\0\0\0system\x93."),
        ("EXT1", b"\x82\x01."),
        ("EXT2", b"\x83\x01\0."),
        ("EXT4", b"\x84\x01\0\0\0."),
        ("PERSID", b"Pstorage\n."),
        ("MEMOIZE", b"}\x94."),
        ("FRAME", b"\x95\0\0\0\0\0\0\0\0."),
        ("GET", b"}g0\n."),
        ("PUT", b"}p0\n."),
        ("POP", b"}0."),
        ("POP_MARK", b"(1}."),
        ("DUP", b"}2."),
        ("DICT", b"(d."),
        ("LIST", b"(l."),
        ("INT", b"I1\n."),
        ("LONG", b"L1L\n."),
        ("LONG4", b"\x8b\xff\xff\xff\x7f."),
        ("FLOAT", b"F1\n."),
        ("STRING", b"S'x'\n."),
        ("BINBYTES8", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."),
        ("EMPTY_SET", b"\x8f."),
        ("0xff", b"\xff."),
    ];
    for (name, code) in cases {
        match refused(&with_pickle(code)) {
            PthError::Opcode { opcode, .. } => assert_eq!(opcode, name),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn row_43_allowed_names_cannot_be_made_to_call() {
    let cases: [(&str, &[u8]); 15] = [
        ("nested REDUCE", b"ccollections\nOrderedDict\n)R)R."),
        ("REDUCE on a dict", b"})R."),
        ("REDUCE of a string", b"X\x02\0\0\0os)R."),
        ("OrderedDict of items", b"ccollections\nOrderedDict\n]\x85R."),
        ("a storage class called", b"ctorch\nFloatStorage\n)R."),
        ("a tensor of nothing", b"ctorch._utils\n_rebuild_tensor_v2\n)R."),
        ("a tensor of six Nones", b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR."),
        ("a parameter of a dict", b"ctorch._utils\n_rebuild_parameter\n}NN\x87R."),
        ("REDUCE without a tuple", b"ccollections\nOrderedDict\n]R."),
        ("BUILD on a dict", b"}}b."),
        ("BUILD of a list", b"ccollections\nOrderedDict\n)R]b."),
        ("BUILD on a global", b"ccollections\nOrderedDict\n}b."),
        ("a global as value", b"}X\x01\0\0\0actorch\nFloatStorage\ns."),
        ("a bare global", b"ctorch\nFloatStorage\n."),
        ("items set in a tuple", b")X\x01\0\0\0aNs."),
    ];
    for (name, code) in cases {
        let error = refused(&with_pickle(code));
        assert!(matches!(error, PthError::Pickle { .. }), "{name}: {error}");
    }
}

#[test]
fn row_43_persistent_ids_name_storages_of_the_archive_only() {
    let id = |class: &str, kind: &str, key: &str, numel: i64| {
        let mut code = b"(".to_vec();
        crafted::push_str(&mut code, kind);
        code.extend(format!("c{class}\n").as_bytes());
        crafted::push_str(&mut code, key);
        crafted::push_str(&mut code, "cpu");
        crafted::push_int(&mut code, numel);
        code.extend(b"tQ.");
        with_pickle(&code)
    };
    let float = "torch\nFloatStorage";
    let pickle = [
        ("another kind", id(float, "module", "0", 4)),
        ("a key that is absent", id(float, "storage", "1", 4)),
        ("a key that is a path", id(float, "storage", "../0", 4)),
        ("a key that is an entry", id(float, "storage", "../data.pkl", 4)),
        ("a negative size", id(float, "storage", "0", -4)),
        ("a class that is none", id("collections\nOrderedDict", "storage", "0", 4)),
        ("no tuple", with_pickle(b"X\x01\0\0\0aQ.")),
        ("a short tuple", with_pickle(b"X\x01\0\0\0a\x85Q.")),
        ("a dict", with_pickle(b"}Q.")),
    ];
    check(&pickle, |error| matches!(error, PthError::Pickle { .. }));
    let view = [
        ("larger than the entry", id(float, "storage", "0", 5)),
        ("of another type", id("torch\nDoubleStorage", "storage", "0", 3)),
        ("overflowing", id(float, "storage", "0", i64::MAX)),
        ("a storage by itself", id(float, "storage", "0", 4)),
    ];
    check(&view, |error| matches!(error, PthError::View { .. }));
    // One storage as two types.
    let (mut views, mut storages) = one_tensor();
    views.push(View { name: "b".into(), storage: 1, ..views[0].clone() });
    storages.push(Storage { class: "torch\nIntStorage", numel: 4, bytes: vec![0; 16] });
    let code = crafted::pickle(&views, &storages);
    // The second key is "1"; make it "0".
    let key = b"X\x01\0\0\x001";
    let at = code.windows(key.len()).rposition(|window| window == key).unwrap();
    let mut confused = code;
    confused[at + 5] = b'0';
    let error = refused(&crafted::zip(&crafted::entries(confused, &storages)));
    assert!(error.to_string().contains("as 4 values of F32 and as 4 of I32"), "{error}");
}

#[test]
fn row_43_bombs_are_refused_within_bounds() {
    let repeat = |head: &[u8], body: &[u8], count: usize, tail: &[u8]| {
        with_pickle(&[head, &body.repeat(count), tail].concat())
    };
    // Lists of lists: 2^30 values in a few bytes.
    let mut laughs = b"]q\0".to_vec();
    for n in 0..30_u8 {
        laughs.extend([b']', b'q', n + 1, b'(', b'h', n, b'h', n, b'e']);
    }
    laughs.push(b'.');
    let mut text = Vec::new();
    crafted::push_str(&mut text, &"x".repeat(1 << 16));
    text.extend(b"q\0");
    let mut memo = b"}".to_vec();
    for n in 0..1_u32 << 19 {
        memo.push(b'r');
        memo.extend(n.to_le_bytes());
    }
    memo.push(b'.');
    let cases = [
        ("a list in itself", with_pickle(b"]q\0h\0a.")),
        ("a tuple that is a million deep", repeat(b")", b"\x85", 1 << 18, b".")),
        ("a billion laughs", with_pickle(&laughs)),
        ("a deep stack", repeat(b"", b"N", 1 << 20, b".")),
        ("many marks", repeat(b"", b"(", 1000, b".")),
        ("many empty lists", repeat(b"](", b"]", 1 << 18, b"e.")),
        ("a list of a million", repeat(b"](", b"NNNNNNNN", 1 << 14, b"e(e.")),
        ("text a thousand times", repeat(&[b"](", &text[..]].concat(), b"h\0", 1000, b"e.")),
        ("a full memo", with_pickle(&memo)),
    ];
    for (name, bytes) in &cases {
        let error = refused(bytes);
        let depth = matches!(error, PthError::Limit { .. });
        // Lists of one level below the limits are read as such.
        assert!(depth || matches!(error, PthError::Pickle { .. }), "{name}: {error}");
    }
    // A large index takes no memory.
    let error = refused(&with_pickle(b"}r\0\0\0\x80."));
    assert!(matches!(error, PthError::Limit { .. }), "{error}");
    let error = refused(&with_pickle(b"}r\xff\xff\0\0."));
    assert!(error.to_string().contains("memo 65535 is put before"), "{error}");
    let error = refused(&with_pickle(b"j\0\0\0\x80."));
    assert!(error.to_string().contains("memo 2147483648 was never put"), "{error}");
}

#[test]
fn row_43_broken_pickles_are_refused() {
    let cases: [(&str, &[u8]); 14] = [
        ("empty", b""),
        ("only a stop", b"."),
        ("no stop", b"}"),
        ("two values", b"}}."),
        ("an open mark", b"}(."),
        ("bytes after the stop", b"}.}"),
        ("a text beyond the end", b"X\xff\xff\0\0abc."),
        ("a huge text", b"X\xff\xff\xff\xffabc."),
        ("a huge integer", b"\x8a\xff\x01."),
        ("a value below the mark", b"}X\x01\0\0\0a(s."),
        ("a key without a value", b"}(X\x01\0\0\0au."),
        ("a key that is no text", b"}K\x01Ns."),
        ("text that is no UTF-8", b"}X\x01\0\0\0\xffNs."),
        ("a key that comes twice", b"}X\x01\0\0\0aNsX\x01\0\0\0aNs."),
    ];
    for (name, code) in cases {
        let error = refused(&with_pickle(code));
        assert!(matches!(error, PthError::Pickle { .. }), "{name}: {error}");
    }
    let (_, storages) = one_tensor();
    for start in [&b"}."[..], b"\x80\x03}.", b"\x80", b"", b"\x80\x02\x80\x04}."] {
        let error = refused(&crafted::zip(&crafted::entries(start.to_vec(), &storages)));
        assert!(error.to_string().contains("protocol"), "{error}");
    }
}
