//! Meshes that cannot be opened, for reasons outside of the chips. A process of
//! its own: what an interpreter has imported stays.

#[cfg(test)]
#[path = "mock/devices.rs"]
mod devices;

use std::fs;
use std::path::{Path, PathBuf};

use mesh::MeshError;
use mesh_ttnn::board::cards;
use mesh_ttnn::python::{Dispatch, OpenError, OpenOptions, TtnnOps};

fn refused(options: &OpenOptions) -> OpenError {
    TtnnOps::open(options).expect_err("it is refused")
}

/// Each from what an interpreter without the package says to what one with it
/// does: in this order.
#[test]
fn what_is_missing_is_an_error_that_says_what_to_do() {
    let host = cards(Path::new("/"));
    assert!(host.is_empty(), "this is for a host without cards, it has {host:?}");
    let _alone = devices::alone();
    let good = devices::options("n150", 1, Dispatch::Ethernet);

    for num_chips in [0, 3, 4, 9] {
        let error = refused(&OpenOptions { num_chips, ..good.clone() });
        assert!(matches!(error, OpenError::NumChips(n) if n == num_chips), "{error}");
        assert!(matches!(error.into(), MeshError::DoesNotFit(_)));
    }
    let nowhere = PathBuf::from("/nowhere/at/all");
    let error = refused(&OpenOptions { mock: Some(nowhere.clone()), ..good.clone() });
    assert!(matches!(&error, OpenError::Descriptor { path } if *path == nowhere), "{error}");

    // The first that is asked for: this host's cards, of which there are none.
    let cards = OpenOptions { mock: None, ..good.clone() };
    let error = refused(&OpenOptions { site_packages: Some(nowhere.clone()), ..cards.clone() });
    assert!(matches!(&error, OpenError::SitePackages { path } if *path == nowhere), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = refused(&OpenOptions { site_packages: Some(empty), ..cards.clone() });
    assert!(matches!(error, OpenError::NotInstalled { .. }), "{error}");
    assert!(error.to_string().contains("pip install ttnn==0.81.1"), "{error}");

    let package = folder.path().join("old/ttnn-0.50.0.dist-info");
    fs::create_dir_all(&package).unwrap();
    let metadata = "Metadata-Version: 2.1\nName: ttnn\nVersion: 0.50.0\n";
    fs::write(package.join("METADATA"), metadata).unwrap();
    let old = folder.path().join("old");
    let error = refused(&OpenOptions { site_packages: Some(old.clone()), ..cards.clone() });
    assert!(matches!(&error, OpenError::Version { found } if found == "0.50.0"), "{error}");
    assert!(error.to_string().contains("0.81.1"), "{error}");
    fs::remove_dir_all(old).unwrap();

    let error = refused(&cards);
    assert!(matches!(error, OpenError::NoCard), "{error}");
    assert!(error.to_string().contains("/dev/tenstorrent/0"), "{error}");

    let error = refused(&good);
    assert!(matches!(error, OpenError::OneClusterPerProcess { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("this host's cards") && text.contains("n150.yaml"), "{text}");
}
