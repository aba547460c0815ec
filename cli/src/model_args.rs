//! Flags that every command on a finished model has, and opening it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::adapters::{base_name, is_same_base, load_adapter, load_adapter_as};
use planish_nn::decoder::Model;
use planish_nn::quantize;
use planish_nn::reward::adapter_head;
use planish_nn::tokenizer::Tokenizer;
use planish_train::config::{DeviceChoice, FourBitType, ModelSettings, WeightDtype};
use planish_train::device::{self, Demands};
use planish_train::models::{self, Opened};
use planish_train::plan;

use crate::failure::UsageError;
use crate::output;

/// Adds `--model`, `--model-revision`, `--adapter`, `--dtype` and `--threads`.
pub(crate) fn with_flags(command: Command) -> Command {
    let text = |name: &'static str| Arg::new(name).long(name);
    command
        .arg(text("model").required(true).value_name("MODEL").help("A directory, a .gguf file, a hub id, or `builtin`"))
        .arg(
            text("model-revision").default_value("main").value_name("REV").help("Branch, tag or commit of a hub model"),
        )
        .arg(text("adapter").value_name("DIR").value_parser(value_parser!(PathBuf)).help("Adapter in PEFT's format"))
        .arg(
            text("dtype")
                .value_name("DTYPE")
                .default_value("auto")
                .value_parser(["auto", "float32", "bfloat16"])
                .help("Dtype of the weights in memory; auto is that of the file"),
        )
        .arg(threads())
}

/// `--load-in-4bit` and what belongs to it, of commands that take weights as `sft` trains an adapter on them.
pub(crate) fn with_quantisation(command: Command) -> Command {
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    command
        .arg(
            switch("load-in-4bit").help(
                "Quantise the linear modules of the layers to 4 bits: the base that QLoRA's adapter was trained on",
            ),
        )
        .arg(switch("load-in-8bit").conflicts_with("load-in-4bit").help("Quantise them to 8 bits"))
        .arg(
            Arg::new("bnb-4bit-quant-type")
                .long("bnb-4bit-quant-type")
                .value_name("TYPE")
                .value_parser(["nf4", "fp4"])
                .requires("load-in-4bit")
                .help("Code of the 4 bits [nf4]"),
        )
        .arg(
            switch("use-bnb-nested-quant").requires("load-in-4bit").help("Quantise the scales of the 4-bit blocks too"),
        )
}

/// What these flags quantise a base to, in the words of the settings.
fn quantisation(matches: &ArgMatches) -> ModelSettings {
    let set = |name: &str| matches.try_get_one::<bool>(name).ok().flatten().copied().unwrap_or_default();
    let kind = matches.try_get_one::<String>("bnb-4bit-quant-type").ok().flatten();
    ModelSettings {
        load_in_4bit: set("load-in-4bit"),
        load_in_8bit: set("load-in-8bit"),
        bnb_4bit_quant_type: if kind.is_some_and(|k| k == "fp4") { FourBitType::Fp4 } else { FourBitType::Nf4 },
        use_bnb_nested_quant: set("use-bnb-nested-quant"),
        ..ModelSettings::default()
    }
}

/// `--device`, of commands that compute on one.
pub(crate) fn device() -> Arg {
    let parse = |text: &str| {
        DeviceChoice::from_text(text).ok_or_else(|| format!("must be {}, found `{text}`", DeviceChoice::RULE.accepts))
    };
    Arg::new("device")
        .long("device")
        .value_name("DEVICE")
        .default_value("cpu")
        .value_parser(parse)
        .help("Where to compute: cpu, cuda, cuda:N, emulator, or auto for a GPU if there is one")
}

/// `--bf16`, of the same.
pub(crate) fn bf16() -> Arg {
    Arg::new("bf16")
        .long("bf16")
        .value_name("BOOL")
        .num_args(0..=1)
        .default_missing_value("true")
        .value_parser(value_parser!(bool))
        .help("Activations in bfloat16, for tensor cores [true on a GPU; the processor has float32 only]")
}

/// `--threads`.
pub(crate) fn threads() -> Arg {
    let parser = value_parser!(u64).range(1..=1024);
    Arg::new("threads").long("threads").value_name("N").value_parser(parser).help("Threads [the processor's cores]")
}

/// Starts the threads of the process, of which the calling thread is one: work that it hands out begins at
/// once, without waking a thread to do what this one could. `None` is one for each core.
///
/// # Errors
/// A system that gives no threads.
pub(crate) fn set_threads(n: Option<usize>) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n.unwrap_or(0)).use_current_thread();
    pool.build_global().context("cannot start the threads")
}

/// Opens the model and the adapter that the flags name.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn open(matches: &ArgMatches) -> anyhow::Result<(Model, Tokenizer)> {
    let adapter: Vec<PathBuf> = matches.get_one::<PathBuf>("adapter").cloned().into_iter().collect();
    open_with(matches, &adapter)
}

/// Opens the model that the flags name, with these adapters, numbered from 0.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn open_with(matches: &ArgMatches, adapters: &[PathBuf]) -> anyhow::Result<(Model, Tokenizer)> {
    let (opened, dtype) = files(matches)?;
    let mut model = opened.load(dtype, false)?;
    for (slot, adapter) in adapters.iter().enumerate() {
        load_adapter_as(&mut model, adapter, slot, false)?;
        let name = matches.get_one::<String>("model").map(String::as_str).unwrap_or_default();
        other_base(adapter, name).into_iter().for_each(output::note);
    }
    place(matches, &mut model)?;
    Ok((model, opened.tokenizer))
}

/// Puts a model on the device that the flags name, if the command has such a flag.
fn place(matches: &ArgMatches, model: &mut Model) -> anyhow::Result<()> {
    if let Ok(Some(&choice)) = matches.try_get_one::<DeviceChoice>("device") {
        device::place(model, choice, &Demands::none().bf16(bf16_of(matches)))?;
    }
    Ok(())
}

/// Lays the weights of a model that will decode on the processor [out](quantize::lay_out) for that, if there is room for
/// them once more: those of a file lie in the system's own cache, which is given up where memory is short.
///
/// # Errors
/// No memory.
pub(crate) fn for_decoding(mut model: Model) -> anyhow::Result<Model> {
    let bytes = quantize::laid_out_bytes(&mut model);
    if plan::available_memory().is_none_or(|available| available > bytes as u64) {
        quantize::lay_out(&mut model)?;
    }
    Ok(model)
}

/// Names of a model, and of an adapter on it.
pub(crate) type Named<'a> = (&'a str, Option<&'a PathBuf>);

/// The models that the flags name, each with its adapter: several of each, or several adapters of one model.
///
/// # Errors
/// Numbers of both that do not go together.
pub(crate) fn members(matches: &ArgMatches) -> anyhow::Result<Vec<Named<'_>>> {
    let models: Vec<&str> = matches.get_many::<String>("model").into_iter().flatten().map(String::as_str).collect();
    let adapters: Vec<&PathBuf> = matches.get_many::<PathBuf>("adapter").into_iter().flatten().collect();
    match (models.len(), adapters.len()) {
        (_, 0) => Ok(models.into_iter().map(|m| (m, None)).collect()),
        (1, _) => Ok(adapters.into_iter().map(|a| (models[0], Some(a))).collect()),
        (m, a) if m == a => Ok(models.into_iter().zip(adapters.into_iter().map(Some)).collect()),
        (m, a) => Err(wrong(format!(
            "{m} --model and {a} --adapter do not go together: give one --adapter for each --model, or several of one --model"
        ))),
    }
}

/// Opens a reward model: with a head of its own, or of the adapter.
///
/// # Errors
/// What is wrong with it; that there is no such head.
pub(crate) fn open_reward(matches: &ArgMatches, (name, adapter): Named<'_>) -> anyhow::Result<(Model, Tokenizer)> {
    let (opened, dtype) = files_of(matches, name)?;
    let of_adapter = match adapter {
        Some(adapter) => adapter_head(adapter)?,
        None => None,
    };
    let Some(kind) = of_adapter.or(opened.pretrained.reward_head()?) else {
        return Err(wrong("neither the model nor an adapter has a head of rewards; train one with `planish reward`"));
    };
    let mut model = opened.load_reward(dtype, kind, 0, false)?;
    if let Some(adapter) = adapter {
        load_adapter(&mut model, adapter)?;
        other_base(adapter, name).into_iter().for_each(output::note);
    }
    place(matches, &mut model)?;
    Ok((model, opened.tokenizer))
}

/// A note that an adapter was made for another model than the one that it is put on, if it was: it fits any of that shape.
pub(crate) fn other_base(adapter: &Path, model: &str) -> Option<String> {
    // What is wrong with its file is told by whoever reads all of it.
    let base = base_name(adapter).ok().flatten().filter(|base| !is_same_base(base, model))?;
    Some(format!(
        "note: {} says that its base is {base}, and the model is {model}: if their weights are not the same, it does not do \
         what it was trained for",
        adapter.display()
    ))
}

/// What `--bf16` says, of commands that have it.
fn bf16_of(matches: &ArgMatches) -> Option<bool> {
    matches.try_get_one::<bool>("bf16").ok().flatten().copied()
}

/// Starts the threads that the flags ask for, and opens the model's files.
fn files(matches: &ArgMatches) -> anyhow::Result<(Opened, WeightDtype)> {
    start_threads(matches)?;
    files_of(matches, matches.get_one::<String>("model").map(String::as_str).unwrap_or_default())
}

/// The threads that the flags ask for.
///
/// # Errors
/// As [`set_threads`].
pub(crate) fn start_threads(matches: &ArgMatches) -> anyhow::Result<()> {
    set_threads(matches.get_one::<u64>("threads").map(|&n| n as usize))
}

/// A model's files, and the dtype to hold them in.
fn files_of(matches: &ArgMatches, name: &str) -> anyhow::Result<(Opened, WeightDtype)> {
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
    let opened = models::open(name, text("model-revision"), &mut |_| {})?.quantized(&quantisation(matches));
    let dtype = match text("dtype") {
        "float32" => WeightDtype::Float32,
        "bfloat16" => WeightDtype::Bfloat16,
        _ => WeightDtype::Auto,
    };
    Ok((opened, dtype))
}

/// A mistake in the arguments, as a sentence.
pub(crate) fn wrong(sentence: impl Into<String>) -> anyhow::Error {
    UsageError::Arguments { sentence: sentence.into() }.into()
}
