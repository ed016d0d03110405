#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(
    // Where the converter of pages panics, that is caught; libFuzzer's own hook would end the process before.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| fuzz_targets::files(bytes)
);
