//! Lets what is linked here find libpython where it was built, without
//! `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "ttnn")]
    pyo3_build_config::add_libpython_rpath_link_args();
}
