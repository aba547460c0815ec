//! `planish quantize`: write a model in 4 or 8 bits.

use std::cell::Cell;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use planish_nn::Error;
use planish_nn::quantize::{QuantizeAs, QuantizedTensors, is_quantizable};
use planish_nn::weights::{atomic_write, save_sharded};
use planish_tensor::DType;
use planish_tensor::quant::{BLOCK_SIZES, FourBitKind};
use planish_train::models;
use serde_json::json;

use super::json_flag;
use super::staged::Place;
use crate::failure::DONE;
use crate::{model_args, output};

pub(crate) fn command() -> Command {
    let text = |name: &'static str| Arg::new(name).long(name);
    let switch = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("quantize")
        .about("Write a model with the linear modules of its layers in 4 or 8 bits, as bitsandbytes has them")
        .arg(text("model").required(true).value_name("MODEL").help("A directory, a .gguf file, a hub id, or `builtin`"))
        .arg(
            text("model-revision").default_value("main").value_name("REV").help("Branch, tag or commit of a hub model"),
        )
        .arg(
            text("output-dir")
                .short('o')
                .required(true)
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("New directory for the quantised model"),
        )
        .arg(
            text("quant-type")
                .alias("bnb-4bit-quant-type")
                .value_name("TYPE")
                .default_value("nf4")
                .value_parser(["nf4", "fp4", "int8"])
                .help("Format of the weights"),
        )
        .arg(
            text("blocksize")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Elements that share a scale in 4 bits: 32 to 4096, a power of two [64]"),
        )
        .arg(
            switch("double-quant")
                .visible_aliases(["use-bnb-nested-quant", "bnb-4bit-use-double-quant"])
                .help("Quantise the scales of the 4-bit blocks too"),
        )
        .arg(
            text("max-shard-size")
                .value_name("SIZE")
                .default_value("1GB")
                .help("A file of the result is at most so large, as is what is in memory of it: 500MB, 2GiB, or bytes"),
        )
        .arg(switch("overwrite-output-dir").help("Use the directory although something is in it"))
        .arg(model_args::threads())
        .arg(json_flag())
}

/// The format that the flags ask for.
fn how(matches: &ArgMatches) -> anyhow::Result<QuantizeAs> {
    let (double, block) = (matches.get_flag("double-quant"), matches.get_one::<u64>("blocksize"));
    let kind = matches.get_one::<String>("quant-type").map(String::as_str).unwrap_or_default();
    let Some(kind) = FourBitKind::parse(kind) else {
        if double || block.is_some() {
            let sentence = "--blocksize and --double-quant are for 4 bits; int8 has one scale a row: leave them out";
            return Err(model_args::wrong(sentence));
        }
        return Ok(QuantizeAs::Int8);
    };
    let block = block.map_or(Some(QuantizeAs::BLOCK), |&n| usize::try_from(n).ok().filter(|n| BLOCK_SIZES.contains(n)));
    match block {
        Some(block) => Ok(QuantizeAs::FourBit { kind, block, double }),
        None => Err(model_args::wrong("--blocksize must be one of 32, 64, 128, 256, 512, 1024, 2048 and 4096")),
    }
}

/// Bytes of a size as transformers' `max_shard_size` has it (`500MB`, powers of 1000), in powers of 1024 (`2GiB`), or
/// without a unit. Units are read in any case; bits there are none.
fn bytes(size: &str) -> Option<u64> {
    let size = size.trim().to_ascii_lowercase();
    let (number, unit) = size.split_at(size.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(size.len()));
    let (base, power) = match unit {
        "" | "b" => (1f64, 0),
        "kb" => (1e3, 1),
        "mb" => (1e3, 2),
        "gb" => (1e3, 3),
        "tb" => (1e3, 4),
        "kib" => (1024.0, 1),
        "mib" => (1024.0, 2),
        "gib" => (1024.0, 3),
        "tib" => (1024.0, 4),
        _ => return None,
    };
    let bytes = number.trim().parse::<f64>().ok()? * base.powi(power);
    (1.0..(1u64 << 63) as f64).contains(&bytes).then_some(bytes as u64)
}

/// The limit of a file.
fn shard_size(matches: &ArgMatches) -> anyhow::Result<u64> {
    let size = matches.get_one::<String>("max-shard-size").map(String::as_str).unwrap_or_default();
    bytes(size).ok_or_else(|| {
        let sentence =
            format!("--max-shard-size is {size:?}, which is no size: say 1GB, 500MB, 2GiB or a number of bytes");
        model_args::wrong(sentence)
    })
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<u8> {
    let (how, shard_size) = (how(matches)?, shard_size(matches)?);
    model_args::set_threads(matches.get_one::<u64>("threads").map(|&n| n as usize))?;
    let text = |name: &str| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
    let opened = models::open(text("model"), text("model-revision"), &mut |_| {})?;
    let out = matches.get_one::<PathBuf>("output-dir").expect("required");
    let source = opened.pretrained.source();
    let names = source.names();
    let mut config = opened.pretrained.config.source.clone();
    // What is refused is refused before anything is written.
    if let Some(name) = names.iter().find(|n| is_quantizable(n))
        && let Some(tensor) = source.tensor(name, &[])?
        && let Some(q) = tensor.quantized()
    {
        return Err(Error::AlreadyQuantized { name: name.clone(), format: q.format() }.into());
    }
    if !config["quantization_config"].is_null() {
        let sentence = "the model's config.json has a quantization_config: it is quantised already, or says that it is";
        return Err(model_args::wrong(sentence));
    }
    if !names.iter().any(|n| is_quantizable(n)) {
        return Err(model_args::wrong("the model has no linear modules that could be quantised"));
    }
    let json = matches.get_flag("json");
    let place = Place::claim(out, matches.get_flag("overwrite-output-dir"))?;
    let (mut lines, mut before, mut after) = (Vec::new(), 0u64, 0u64);
    let (failed, mut dtype) = (Cell::new(None), None);
    place.fill(|dir| {
        let mut done = |name: &str, weight: &planish_tensor::quant::Quantized, error: f64| {
            let [rows, cols] = weight.shape();
            before += 2 * (rows * cols) as u64;
            after += weight.nbytes() as u64;
            if !json {
                output::line(format_args!(
                    "{name}  {rows} x {cols}  {}  relative RMS error {error:.4}",
                    weight.format()
                ))
                .ok();
            }
            lines.push(json!({ "name": name, "shape": [rows, cols], "bytes": weight.nbytes(), "relative_rms": error }));
        };
        let tensors = QuantizedTensors::new(source, how, &failed, &mut done);
        let tensors = tensors.inspect(|(_, t)| {
            let plain = t.dtype().is_float() && t.rank() == 2;
            dtype = dtype.or(plain.then(|| t.dtype()));
        });
        save_sharded(dir, tensors, shard_size)?;
        if let Some(error) = failed.take() {
            return Err(error);
        }
        let dtype = dtype.unwrap_or(DType::F32);
        config["torch_dtype"] = dtype.name().into();
        config["quantization_config"] = how.to_json(dtype);
        let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value");
        text.push(b'\n');
        atomic_write(dir.join("config.json"), |w| w.write_all(&text))?;
        Ok(opened.tokenizer.save(dir)?)
    })?;
    if json {
        output::json(&json!({ "model": out, "bytes": after, "bytes_as_16_bit": before, "weights": lines }))?;
    } else {
        let (count, share) = (lines.len(), after as f64 / before.max(1) as f64);
        output::line(format_args!("{count} weights in {after} bytes, {share:.2} of 16 bits"))?;
        output::line(out.display())?;
    }
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_those_of_transformers() {
        let sizes = [("1GB", 1_000_000_000), ("500MB", 500_000_000), ("2 GiB", 1 << 31), ("0.5kb", 500), ("7", 7)];
        for (text, want) in sizes {
            assert_eq!(bytes(text), Some(want), "{text}");
        }
        for text in ["", "GB", "1XB", "1G", "0", "0.4", "-1GB", "nan", "infGB", "1e9", "99999999TB", "1GB2"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
