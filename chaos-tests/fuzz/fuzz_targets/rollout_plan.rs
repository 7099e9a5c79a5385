#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| flotilla_node::fuzz::rollout_plan(data));
