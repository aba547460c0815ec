//! Every kind of bad input, from outside: one sentence that names the file, line, key or shape, exit code
//! 2, and nothing written.

mod adapters;
mod configs;
mod experts;
mod files;
mod place;
mod sentences;
mod texts;
