//! The laws of the mesh contract, on 1, 2, 3 and 8 simulated chips.

use kernels::Isa;
use mesh::conformance::{self, Strength};
use mesh_cpu::CpuMesh;

#[test]
fn the_cpu_mesh_keeps_every_law() {
    conformance::run(Strength::EXACT, &[1, 2, 3, 8], |num_chips| {
        CpuMesh::new(num_chips, 2).unwrap()
    });
}

#[test]
fn every_instruction_set_keeps_every_law() {
    for isa in Isa::available() {
        conformance::run(Strength::EXACT, &[2], |num_chips| {
            CpuMesh::with_isa(num_chips, 3, isa).unwrap()
        });
    }
}
