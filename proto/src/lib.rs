//! The wire contract: generated types and services of `llama_mesh.v1`.
//!
//! Wire types stop at each service's edge; nothing behind the edge names this
//! crate. The `.proto` files beside this crate's build script are the
//! documentation of every field.

/// Package `llama_mesh.v1`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::too_many_lines,
    reason = "generated code; the .proto files carry the comments"
)]
pub mod v1 {
    tonic::include_proto!("llama_mesh.v1");
}

/// The compiled descriptors of every file in the package, for reflection and
/// for the test that guards compatibility.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/llama_mesh.fds"));

/// Version of the gateway-worker contract; peers with another one refuse.
pub const PROTOCOL_VERSION: u32 = 1;
