//! The `flotilla` program. Everything it does is in the library, so that tests of other crates can
//! build the same program as a binary of their own.

fn main() -> std::process::ExitCode {
    flotilla_cli::main()
}
