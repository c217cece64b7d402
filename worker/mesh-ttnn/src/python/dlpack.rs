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

use crate::spec::{HostData, Shape};

/// Axes of every host tensor.
const RANK: usize = 4;
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

/// What a consumer holds: `managed` comes first, its pointers lead into the
/// other two.
#[repr(C)]
struct Lent {
    managed: DlManagedTensor,
    shape: [i64; RANK],
    data: Arc<HostData>,
}

/// Elements that Python may read.
#[pyclass(frozen)]
pub(super) struct HostBuffer {
    shape: Shape,
    data: Arc<HostData>,
}

impl HostBuffer {
    pub(super) fn new(shape: Shape, data: HostData) -> Self {
        Self { shape, data: Arc::new(data) }
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
        capsule(py, self.shape, Arc::clone(&self.data))
    }

    #[staticmethod]
    fn __dlpack_device__() -> (i32, i32) {
        CPU
    }
}

fn capsule(py: Python<'_>, shape: Shape, data: Arc<HostData>) -> PyResult<Bound<'_, PyCapsule>> {
    let (code, bits) = match &*data {
        HostData::BFloat16(_) => (BFLOAT, 16),
        HostData::UInt32(_) => (UINT, 32),
        HostData::Int32(_) => (INT, 32),
    };
    let elements: *const c_void = match &*data {
        HostData::BFloat16(values) => values.as_ptr().cast(),
        HostData::UInt32(values) => values.as_ptr().cast(),
        HostData::Int32(values) => values.as_ptr().cast(),
    };
    let lent = Box::new(Lent {
        managed: DlManagedTensor {
            tensor: DlTensor {
                // The protocol has no name for elements that are only read.
                data: elements.cast_mut(),
                device_type: CPU.0,
                device_id: CPU.1,
                rank: RANK as i32,
                code,
                bits,
                lanes: 1,
                shape: null_mut(),
                // Null: row-major without gaps.
                strides: null_mut(),
                byte_offset: 0,
            },
            manager: null_mut(),
            deleter: Some(free),
        },
        shape: shape.map(|axis| axis as i64),
        data,
    });
    // From the box's final place: it is not moved again.
    let lent = NonNull::from(Box::leak(lent));
    // SAFETY: `lent` was leaked just above and nobody else has it; the pointer to
    // its shape stays valid until `free` makes a box of it again.
    unsafe { (*lent.as_ptr()).managed.tensor.shape = (&raw mut (*lent.as_ptr()).shape).cast() };
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
/// `capsule` is one that [`capsule`] made; the interpreter is attached.
unsafe extern "C" fn discard(capsule: *mut ffi::PyObject) {
    // SAFETY: `capsule` is a capsule, and Python runs destructors attached.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, c"dltensor".as_ptr()) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, c"dltensor".as_ptr());
            free(managed.cast());
        }
    }
}
