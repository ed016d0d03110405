//! The committed inputs of the fuzz targets, without a fuzzer: seeds, and whatever once broke a promise.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds")
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_committed_input_keeps_the_promises() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        for file in files_in(&seeds().join(name)) {
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(|| target(&bytes)).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(
        broken.is_empty(),
        "{broken:#?}: see the panics above, in this order"
    );
}

#[test]
fn inputs_without_settings_or_content_are_harmless() {
    for (_, target) in TARGETS {
        let short: [&[u8]; 6] = [
            b"",
            b"\n",
            b"o",
            b"tc",
            b"\xff\xff\xff\xff\xff\xff",
            b"\n\n",
        ];
        short.into_iter().for_each(target);
    }
}

#[test]
fn every_target_has_seeds_and_a_program_and_all_seeds_a_target() {
    let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let found: Vec<String> = files_in(&seeds())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, found);
    for name in names {
        assert!(!files_in(&seeds().join(name)).is_empty(), "{name}");
        let program = seeds().join(format!("../fuzz_targets/{name}.rs"));
        let program = fs::read_to_string(&program).unwrap();
        assert!(program.contains(&format!("fuzz_targets::{name}(bytes)")));
    }
}
