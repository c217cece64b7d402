//! Calls by how many operands and results they have.

use pyo3::prelude::*;

use super::options::Options;
use super::{Tensor, TtnnOps};
use crate::ops::Result;
use crate::spec::{DataType, HostData, HostMatrix, Layout, MemoryConfig, Spread};

/// Users of a decode step: one a core.
const NUM_USERS: usize = 32;

impl TtnnOps {
    /// An operation of one operand and one result.
    pub(super) fn unary(
        &mut self,
        path: &'static str,
        x: &Tensor,
        options: Options,
    ) -> Result<Tensor> {
        self.attached(path, |ops, py| Ok(Tensor::new(ops.call(py, path, (x.of(py),), options)?)))
    }

    /// An operation of two operands and one result.
    pub(super) fn binary(
        &mut self,
        path: &'static str,
        [x, y]: [&Tensor; 2],
        options: Options,
    ) -> Result<Tensor> {
        self.attached(path, |ops, py| {
            let operands = (x.of(py), y.of(py));
            Ok(Tensor::new(ops.call(py, path, operands, options)?))
        })
    }

    /// An operation with a result for each of `N`.
    pub(super) fn split<const N: usize>(
        &mut self,
        path: &'static str,
        x: &Tensor,
        options: Options,
    ) -> Result<[Tensor; N]> {
        self.attached(path, |ops, py| {
            let parts = ops.call(py, path, (x.of(py),), options)?;
            tensors(&parts)
        })
    }

    /// 0 to 31 on the chips.
    pub(super) fn user_ids(&mut self) -> Result<Tensor> {
        if let Some(ids) = &self.user_ids {
            return Ok(ids.clone());
        }
        let host = self.pack_matrix(HostMatrix {
            shape: [1, 1, 1, NUM_USERS],
            rank: 1,
            data: HostData::UInt32((0..NUM_USERS as u32).collect()),
            dtype: DataType::UInt32,
            layout: Layout::RowMajor,
            spread: Spread::Replicated,
        })?;
        let ids = self.send(&host, MemoryConfig::DRAM)?;
        self.user_ids = Some(ids.clone());
        Ok(ids)
    }
}

/// `N` tensors of a tuple or list.
pub(super) fn tensors<const N: usize>(parts: &Bound<'_, PyAny>) -> PyResult<[Tensor; N]> {
    let tensors: Vec<_> =
        parts.try_iter()?.map(|part| part.map(Tensor::new)).collect::<PyResult<_>>()?;
    let found = tensors.len();
    tensors.try_into().map_err(|_| {
        pyo3::exceptions::PyRuntimeError::new_err(format!("{found} results instead of {N}"))
    })
}
