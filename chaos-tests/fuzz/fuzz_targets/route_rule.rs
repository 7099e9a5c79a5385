#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| flotilla_proxy::fuzz::route_rule(data));
