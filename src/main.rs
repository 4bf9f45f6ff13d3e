//! The `shiparr` program: parse the command line, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    shiparr::cli::main()
}
