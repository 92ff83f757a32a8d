#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hmmvisor_fuzz::requests::run(bytes));
