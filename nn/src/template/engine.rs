//! The template engine: minijinja set up as transformers sets up Jinja, within limits.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use minijinja::formatting::{FormatStyle, format};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::error::{Result, TemplateError};
use super::rewrite::{self, LISTED, MARKS, PERCENT};
use super::shapes::Shapes;
use super::watch::Watch;
use super::{clock, format as widths, methods, python};

/// Steps any template may take. One is an instruction, or 64 bytes of data made; a turn of a large template
/// takes a few hundred.
const BASE_STEPS: u64 = 1_000_000;
/// Steps for each byte of the conversation, and the most in all.
const STEPS_PER_BYTE: u64 = 2;
const MAX_STEPS: u64 = 4_000_000;
/// A template longer than this is a mistake or an attack; the longest in use have 30 KB.
const MAX_SOURCE: usize = 256 << 10;
/// Chains of operators and values nested in a loop are parsed and dropped by recursion, a level of which
/// takes up to 1 KB: this is enough for all that [`MAX_SOURCE`] and [`MAX_STEPS`] allow. Only pages that are
/// touched take memory.
const STACK: usize = 512 << 20;
/// Bytes that any template may write, besides eight times the conversation's.
const BASE_OUTPUT: usize = 8 << 20;
/// Steps bound the time of all but what compares and spells values that hold one list very many times.
const TIME_LIMIT: Duration = Duration::from_secs(20);
/// What this much longer did not come back to where time is looked at never may.
const GRACE: Duration = Duration::from_secs(2);
/// Nesting of macros, loops and expressions. Each level takes up to some KB of a stack of 2 MB.
const RECURSION: usize = 64;

const NAME: &str = "template";
/// Context variable with the time, in seconds since 1970.
const NOW: &str = "planish_now";

/// A parsed template.
pub(super) struct Engine {
    env: Environment<'static>,
    pub(super) name: String,
    pub(super) has_generation: bool,
    pub(super) shapes: Shapes,
}

/// `raise_exception` was called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

#[derive(Debug, thiserror::Error)]
pub(super) enum Limit {
    #[error("output limit")]
    Output,
    #[error("time limit")]
    Time,
    #[error("a value takes more than {0} bytes as text")]
    Value(usize),
}

impl Engine {
    pub(super) fn parse(name: &str, source: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLarge { name: name.to_owned(), len: source.len(), limit: MAX_SOURCE });
        }
        let rewritten = rewrite::rewrite(source);
        if let Some(line) = rewritten.too_long {
            let reason = "this expression has too many parts".to_owned();
            return Err(TemplateError::Syntax { name: name.to_owned(), line, reason });
        }
        let has_generation = rewritten.generation;
        with_stack(name, || {
            let mut env = environment();
            env.add_template_owned(NAME, rewritten.source).map_err(|e| TemplateError::Syntax {
                name: name.to_owned(),
                line: e.line().unwrap_or(0),
                reason: reason(&e),
            })?;
            Ok(Engine { env, name: name.to_owned(), has_generation, shapes: Shapes::default() })
        })
    }

    /// Renders, on a stack made by [`with_stack`], with the variables given, `size` bytes of conversation in them. `marks` are written around
    /// generation blocks.
    pub(super) fn render(
        &self,
        variables: &[(Cow<'_, str>, Value)],
        size: usize,
        now: Option<i64>,
        marks: [&str; 2],
    ) -> Result<String> {
        let steps = BASE_STEPS.saturating_add(STEPS_PER_BYTE.saturating_mul(size as u64)).min(MAX_STEPS);
        let now = now.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
        });
        let own = [(MARKS[0], Value::from(marks[0])), (MARKS[1], Value::from(marks[1])), (NOW, Value::from(now))];
        let context = Value::from_pairs(variables.iter().map(|(k, v)| (k.as_ref(), v.clone())).chain(own));
        let limit = BASE_OUTPUT.saturating_add(size.saturating_mul(8));
        let mut out = Output { bytes: Vec::new(), limit, until: Instant::now() + TIME_LIMIT };
        let slow = || TemplateError::TooSlow { name: self.name.clone(), seconds: TIME_LIMIT.as_secs() };
        let _watch = Watch::start(slow, TIME_LIMIT + GRACE);
        // Fuel belongs to the environment, which is cheap to clone beside what a render does.
        let mut env = self.env.clone();
        env.set_fuel(Some(steps));
        let template = env.get_template(NAME).map_err(|e| self.error(&e, steps, limit))?;
        template.render_captured_to(context, &mut out).map_err(|e| self.error(&e, steps, limit))?;
        String::from_utf8(out.bytes).map_err(|_| TemplateError::Render {
            name: self.name.clone(),
            line: 0,
            reason: "it writes text that is not UTF-8".to_owned(),
        })
    }

    fn error(&self, e: &Error, steps: u64, limit: usize) -> TemplateError {
        let name = self.name.clone();
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
        let mut line = e.line().unwrap_or(0);
        while let Some(cause) = source {
            if let Some(inner) = cause.downcast_ref::<Error>() {
                line = inner.line().unwrap_or(line);
                if inner.kind() == ErrorKind::OutOfFuel {
                    return TemplateError::Endless { name, steps };
                }
            }
            if let Some(raised) = cause.downcast_ref::<Raised>() {
                return TemplateError::Raised { name, line, message: raised.0.clone() };
            }
            let io = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            match io.and_then(|e| e.downcast_ref::<Limit>()).or_else(|| cause.downcast_ref()) {
                Some(Limit::Value(bytes)) => return TemplateError::TooMuch { name, line, bytes: *bytes },
                Some(Limit::Output) => return TemplateError::TooLong { name, limit },
                Some(Limit::Time) => return TemplateError::TooSlow { name, seconds: TIME_LIMIT.as_secs() },
                None => {}
            }
            source = cause.source();
        }
        TemplateError::Render { name, line, reason: reason(e) }
    }
}

thread_local! {
    /// Whether this thread has the stack that templates need.
    static DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Does what parses or renders a template on a stack that no template can overflow, and turns a panic of the
/// template engine into an error.
pub(super) fn with_stack<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let failed = |reason: String| TemplateError::Render { name: name.to_owned(), line: 0, reason };
    let panicked = || Err(failed("the template engine panicked on it".to_owned()));
    if DEEP.get() {
        return std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panicked());
    }
    match on_thread(work) {
        Ok(joined) => joined.unwrap_or_else(|_| panicked()),
        Err(e) => Err(failed(format!("cannot start a thread: {e}"))),
    }
}

/// Runs `work` on a thread with the stack that templates need, so that it renders many without starting a
/// thread for each; where no thread can be started, on this one.
///
/// # Panics
/// If `work` does.
pub fn on_deep_stack<T: Send>(work: impl Fn() -> T + Sync) -> T {
    match on_thread(&work) {
        Ok(joined) => joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_) => work(),
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<std::thread::Result<T>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        let deep = || {
            DEEP.set(true);
            work()
        };
        Ok(thread.spawn_scoped(scope, deep)?.join())
    })
}

/// What an error says, without the engine's file name and line, which are reported apart.
fn reason(e: &Error) -> String {
    match e.detail() {
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}

struct Output {
    bytes: Vec<u8>,
    limit: usize,
    until: Instant,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(Limit::Output));
        }
        if Instant::now() > self.until {
            return Err(io::Error::other(Limit::Time));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_recursion_limit(RECURSION);
    env.set_debug(false);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| match value.as_str() {
        Some(s) => out.write_str(s).map_err(Error::from),
        None => out.write_str(&python::to_str(state, value)?).map_err(Error::from),
    });
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |state: &State, value: Value| python::to_str(state, &value));
    env.add_filter(LISTED, python::listed);
    env.add_filter("trim", |state: &State, value: Value, chars: Option<String>| -> Result<String, Error> {
        Ok(methods::strip(&python::to_str(state, &value)?, chars.as_deref(), true, true).to_owned())
    });
    env.add_filter(PERCENT, |state: &State, pattern: &str, args: Rest<Value>| -> Result<String, Error> {
        widths::pay(state, FormatStyle::Printf, pattern)?;
        let args: Vec<Value> = args.0.into_iter().map(|v| printable(state, v)).collect::<Result<_, Error>>()?;
        format(FormatStyle::Printf, pattern, &args)
    });
    // Python can iterate over strings and index them.
    let iterable =
        |v: &Value| v.is_undefined() || v.kind() == ValueKind::String || (!v.is_none() && v.try_iter().is_ok());
    env.add_test("iterable", move |v: Value| iterable(&v));
    env.add_test("sequence", |v: Value| {
        matches!(v.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    env.add_function("raise_exception", |state: &State, message: Value| -> Result<Value, Error> {
        let message = python::to_str(state, &message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", |state: &State, format: &str| {
        let now = state.lookup(NOW).and_then(|v| i64::try_from(v).ok()).unwrap_or(0);
        clock::strftime(format, now)
    });
    env
}

/// What `%s` prints of values that Python spells in its own way.
fn printable(state: &State, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::String => Ok(value),
        _ => Ok(Value::from(python::to_str(state, &value)?)),
    }
}
