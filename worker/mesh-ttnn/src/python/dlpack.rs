//! Rust memory as a tensor of Python: the DLPack protocol.
//!
//! `ttnn.Tensor` takes any object with `__dlpack__`. That hands over a pointer
//! to the elements, so that a checkpoint's bf16 values are packed for the chips
//! straight from our memory, and not by way of a float32 copy in numpy.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use crate::spec::HostData;

/// Kinds of elements, by DLPack's numbers.
const INT: u8 = 0;
const UINT: u8 = 1;
const BFLOAT: u8 = 4;
/// Where the elements are: in the memory of the host.
const CPU: (i32, i32) = (1, 0);

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    rank: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct DlManagedTensor {
    tensor: DlTensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManagedTensor)>,
}

/// What is lent: in one place until the last borrower is done.
struct Elements {
    shape: Vec<i64>,
    data: HostData,
}

/// What a consumer holds: `managed` comes first, its pointers lead into
/// `elements`.
#[repr(C)]
struct Lent {
    managed: DlManagedTensor,
    elements: Arc<Elements>,
}

/// Elements that Python may read.
#[pyclass(frozen)]
pub(super) struct HostBuffer(Arc<Elements>);

impl HostBuffer {
    pub(super) fn new(shape: &[usize], data: HostData) -> Self {
        let shape = shape.iter().map(|axis| *axis as i64).collect();
        Self(Arc::new(Elements { shape, data }))
    }
}

#[pymethods]
impl HostBuffer {
    /// The elements; they live until the consumer says that it is done. It asks
    /// more than once, and only reads.
    #[pyo3(signature = (**_options))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        _options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        lend(py, Arc::clone(&self.0))
    }

    #[staticmethod]
    fn __dlpack_device__() -> (i32, i32) {
        CPU
    }
}

fn lend(py: Python<'_>, elements: Arc<Elements>) -> PyResult<Bound<'_, PyCapsule>> {
    let (data, code, bits): (*const c_void, _, _) = match &elements.data {
        HostData::BFloat16(values) => (values.as_ptr().cast(), BFLOAT, 16),
        HostData::UInt32(values) => (values.as_ptr().cast(), UINT, 32),
        HostData::Int32(values) => (values.as_ptr().cast(), INT, 32),
    };
    let tensor = DlTensor {
        // The protocol has no name for what is only read.
        data: data.cast_mut(),
        device_type: CPU.0,
        device_id: CPU.1,
        rank: elements.shape.len() as i32,
        code,
        bits,
        lanes: 1,
        shape: elements.shape.as_ptr().cast_mut(),
        // Null: row-major without gaps.
        strides: null_mut(),
        byte_offset: 0,
    };
    let managed = DlManagedTensor { tensor, manager: null_mut(), deleter: Some(free) };
    let lent = NonNull::from(Box::leak(Box::new(Lent { managed, elements })));
    // SAFETY: the pointer is not null and lives until `free`; `discard` is called
    // once, with this capsule, and frees only what no consumer took over.
    unsafe {
        PyCapsule::new_with_pointer_and_destructor(py, lent.cast(), c"dltensor", Some(discard))
    }
}

/// The consumer is done with the elements.
///
/// # Safety
/// `managed` is the first field of a [`Lent`] that was leaked from a box, and is
/// passed here once.
unsafe extern "C" fn free(managed: *mut DlManagedTensor) {
    // SAFETY: by the contract above; `Lent` is `repr(C)`, so that it starts where
    // its first field does.
    drop(unsafe { Box::from_raw(managed.cast::<Lent>()) });
}

/// The capsule goes. A consumer that took the elements over has renamed it, and
/// calls the deleter itself.
///
/// # Safety
/// `capsule` is one that [`lend`] made; the interpreter is attached.
unsafe extern "C" fn discard(capsule: *mut ffi::PyObject) {
    // SAFETY: `capsule` is a capsule, and Python runs destructors attached.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, c"dltensor".as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, c"dltensor".as_ptr());
            free(managed.cast());
        }
    }
}
