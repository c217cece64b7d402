//! Boards and locks in a file system of our own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A host with these cards, as the driver shows them.
fn host(cards: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (card, kind) in cards.iter().enumerate() {
        add_card(root.path(), card, kind, WORMHOLE);
    }
    root
}

fn add_card(root: &Path, card: usize, kind: &str, pci_device: &str) {
    let device = root.join("dev/tenstorrent");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join(card.to_string()), "").unwrap();
    let class = root.join(format!("sys/class/tenstorrent/tenstorrent!{card}"));
    fs::create_dir_all(class.join("device")).unwrap();
    fs::write(class.join("device/vendor"), "0x1e52\n").unwrap();
    fs::write(class.join("device/device"), format!("{pci_device}\n")).unwrap();
    fs::write(class.join("tt_card_type"), format!("{kind}\n")).unwrap();
}

fn kind_of(cards: &[&str]) -> Option<BoardKind> {
    detect_board(host(cards).path()).unwrap().map(|board| board.kind)
}

#[test]
fn cards_are_boards_by_type_and_number() {
    assert_eq!(kind_of(&[]), None);
    assert_eq!(kind_of(&["n150"]), Some(BoardKind::N150));
    assert_eq!(kind_of(&["n300"]), Some(BoardKind::N300));
    assert_eq!(kind_of(&["n300"; 4]), Some(BoardKind::T3k));
}

#[test]
fn cards_are_numbered_as_in_dev_and_other_files_there_are_none() {
    let root = host(&["n300", "n300", "n300", "n300"]);
    fs::create_dir(root.path().join("dev/tenstorrent/by-id")).unwrap();
    let board = detect_board(root.path()).unwrap().unwrap();
    assert_eq!(board.cards, [0, 1, 2, 3]);
}

#[test]
fn a_container_with_one_of_the_cards_has_that_one() {
    let root = host(&["n300", "n150", "n300"]);
    for card in ["0", "2"] {
        fs::remove_file(root.path().join("dev/tenstorrent").join(card)).unwrap();
    }
    let board = detect_board(root.path()).unwrap().unwrap();
    assert_eq!(board, Board { kind: BoardKind::N150, cards: vec![1] });
}

#[test]
fn other_sets_of_cards_are_named_and_refused() {
    for cards in [&["n300"; 2][..], &["n150"; 4], &["n150", "n300"], &["n300"; 8]] {
        let error = detect_board(host(cards).path()).unwrap_err();
        assert!(matches!(error, BoardError::Mixed(_)), "{cards:?}: {error}");
    }
    let error = detect_board(host(&["n150", "n300"]).path()).unwrap_err();
    assert!(error.to_string().contains("1 n150 and 1 n300"), "{error}");
}

#[test]
fn cards_of_other_kinds_are_named_and_refused() {
    let root = host(&["p150a"]);
    let error = detect_board(root.path()).unwrap_err().to_string();
    assert!(error.contains("/dev/tenstorrent/0") && error.contains("p150a"), "{error}");
    let root = host(&[]);
    add_card(root.path(), 0, "n150", "0xb140");
    let error = detect_board(root.path()).unwrap_err().to_string();
    assert!(error.contains("0x1e52:0xb140"), "{error}");
}

#[test]
fn a_card_of_which_the_driver_says_nothing_is_refused() {
    let root = host(&["n150"]);
    fs::remove_dir_all(root.path().join("sys")).unwrap();
    let error = detect_board(root.path()).unwrap_err();
    assert!(matches!(error, BoardError::UnknownCard { card: 0, .. }), "{error}");
}

#[test]
fn processes_that_have_a_card_open_are_found() {
    let root = host(&["n150"]);
    for (process, device) in [("12", "/dev/tenstorrent/1"), ("345", "/dev/tenstorrent/0")] {
        let files = root.path().join("proc").join(process).join("fd");
        fs::create_dir_all(&files).unwrap();
        symlink("/dev/null", files.join("0")).unwrap();
        symlink(device, files.join("3")).unwrap();
    }
    assert_eq!(holders(root.path(), &[0]), [345]);
    assert_eq!(holders(root.path(), &[0, 1]), [12, 345]);
    assert_eq!(holders(root.path(), &[2]), [0; 0]);
}

#[test]
fn a_board_is_taken_once_and_free_again_when_its_lock_goes() {
    let folder = tempfile::tempdir().unwrap();
    let lock = BoardLock::acquire(folder.path(), &[0, 1]).unwrap();
    let error = BoardLock::acquire(folder.path(), &[1, 2]).unwrap_err();
    let LockError::Held { card, owner, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((*card, owner.as_str()), (1, std::process::id().to_string().as_str()));
    BoardLock::acquire(folder.path(), &[2]).unwrap();
    drop(lock);
    BoardLock::acquire(folder.path(), &[0, 1, 2]).unwrap();
}

#[test]
fn an_owner_that_is_gone_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("llama-mesh-tenstorrent-0.lock");
    fs::write(&path, "999999999999").unwrap();
    let _lock = BoardLock::acquire(folder.path(), &[0]).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), std::process::id().to_string());
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap().path().join("gone");
    let error = BoardLock::acquire(&folder, &[7]).unwrap_err();
    assert!(matches!(error, LockError::Io { card: 7, .. }), "{error}");
    assert!(error.to_string().contains("gone"), "{error}");
}

#[test]
fn locks_are_in_the_usual_folder_where_there_is_one() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(BoardLock::folder(root.path()), root.path().join("tmp"));
    fs::create_dir_all(root.path().join("run/lock")).unwrap();
    assert_eq!(BoardLock::folder(root.path()), root.path().join("run/lock"));
}
