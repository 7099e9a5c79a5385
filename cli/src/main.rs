//! The `flotilla` program. Everything it does is in the library, so that tests of other crates can
//! build the same program as a binary of their own.

/// glibc's allocator keeps what a burst of connections needed; mimalloc gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    flotilla_cli::main()
}
