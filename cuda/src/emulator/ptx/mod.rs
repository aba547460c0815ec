//! Reading PTX: text to statements, names not yet resolved.
//!
//! # Source
//! NVIDIA, *Parallel Thread Execution ISA*, version 9.0, chapters 4 to 11.

mod lex;
mod parse;

pub(crate) use parse::parse;

/// What is wrong with a PTX text, and on which line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) line: u32,
    pub(crate) what: String,
}

impl Problem {
    pub(crate) fn new(line: u32, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }
}

/// A file.
#[derive(Debug, Default)]
pub(crate) struct File<'a> {
    pub(crate) target: &'a str,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) entries: Vec<Entry<'a>>,
    /// Names of source files by their number.
    pub(crate) sources: Vec<(u64, &'a str)>,
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) parameters: Vec<Variable<'a>>,
    pub(crate) body: Vec<Statement<'a>>,
    /// `.reqntid`: the block must have just this shape.
    pub(crate) required_threads: Option<[u32; 3]>,
    /// `.maxntid`: the block may have that many threads.
    pub(crate) most_threads: Option<u64>,
}

/// A variable or parameter.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    /// `.global`, `.shared`, …
    pub(crate) space: &'a str,
    pub(crate) align: u64,
    pub(crate) bytes: u64,
    /// An `.extern .shared` array: its size is the launch's.
    pub(crate) dynamic: bool,
    pub(crate) init: Vec<u8>,
    pub(crate) line: u32,
}

#[derive(Debug)]
pub(crate) enum Statement<'a> {
    Instruction(Raw<'a>),
    Label(&'a str),
    /// `.reg .b32 %r<4>` has a count, `.reg .b32 x` none.
    Register {
        kind: &'a str,
        name: &'a str,
        count: Option<u64>,
    },
    Variable(Variable<'a>),
    Open,
    Close,
    /// `.loc file line`
    Location(u64, u32),
    Targets(&'a str, Vec<&'a str>),
}

/// An instruction as it is written.
#[derive(Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) line: u32,
    /// The guard's name, and whether it is negated.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) operands: Vec<Operand<'a>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    Word(&'a str),
    /// `!p`
    Not(&'a str),
    /// `name+4`
    Plus(&'a str, i64),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `{a, b}`
    List(Vec<Operand<'a>>),
    /// `[base+offset]`, or `[base, {x, y}]`; the base is a `Word` or an `Int`.
    Address(Box<Operand<'a>>, i64, Vec<Operand<'a>>),
    /// `a|b`
    Pair(&'a str, &'a str),
}

/// The bytes of a fundamental type such as `.b32`.
pub(crate) fn bytes_of(kind: &str) -> Option<u64> {
    Some(match kind {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        _ => return None,
    })
}
