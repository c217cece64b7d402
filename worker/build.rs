//! Lets what is linked with libpython find it where it was built, without
//! `LD_LIBRARY_PATH`. The crates with a feature `ttnn` share this file.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=PYO3_PYTHON");
    if env::var_os("CARGO_FEATURE_TTNN").is_none() {
        return;
    }
    // The Python that PyO3 builds for.
    let python = env::var_os("PYO3_PYTHON").unwrap_or_else(|| "python3".into());
    let script = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))";
    match Command::new(&python).args(["-c", script]).output() {
        Ok(output) if output.status.success() => {
            let folder = String::from_utf8_lossy(&output.stdout);
            println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.trim());
        }
        _ => println!("cargo:warning=libpython of {} is not known", python.display()),
    }
}
