#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| flotilla_spec::fuzz::app_spec(data));
