#![no_main]
//! See `shmtrace::fuzzing`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| shmtrace::fuzzing::records(data));
