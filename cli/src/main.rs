//! The `planish` program.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong use or bad input,
//! 130 interrupted after a saved checkpoint, 1 anything else.

mod args;
mod commands;
mod doctor;
mod failure;
mod machine;
mod model_args;
mod output;
mod settings;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    planish_nn::template::when_one_does_not_end(|error| {
        output::note(format_args!("error: {error}"));
        std::process::exit(i32::from(failure::WRONG_USE));
    });
    let code = failure::guard(|| {
        let matches = match args::parse(std::env::args_os()) {
            Ok(matches) => matches,
            Err(stop) => return stop.finish(),
        };
        match commands::run(&matches) {
            Ok(code) => code,
            Err(error) => failure::report(&error),
        }
    });
    ExitCode::from(code)
}
