//! Quantised models as files: what is refused, what the program writes and trains on, and resuming.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use planish_autograd::ops::linear::linear;
use planish_autograd::{Param, Tape, Var};
use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::LoadOptions;
use planish_nn::gguf::{GgmlType, GgufFile};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::quantize::QuantizeAs;
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::quant::{FourBit, FourBitKind};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use planish_tests::program::{planish, refused};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A copy of a quantised fixture with its tensors changed.
fn changed(format: &str, change: impl Fn(&mut BTreeMap<String, Tensor>)) -> tempfile::TempDir {
    let (from, dir) = (fixture(&format!("quant/{format}")), tempfile::tempdir().unwrap());
    fs::copy(from.join("config.json"), dir.path().join("config.json")).unwrap();
    let reader = WeightsReader::open(&from).unwrap();
    let mut tensors: BTreeMap<_, _> = reader.names().iter().map(|n| (n.clone(), reader.get(n).unwrap())).collect();
    change(&mut tensors);
    save_safetensors(dir.path().join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
    dir
}

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

fn error(dir: &Path) -> String {
    Pretrained::open(dir).and_then(|p| p.load(LoadOptions::default())).map(drop).unwrap_err().to_string()
}

/// With the state's JSON changed.
fn state(format: &str, change: impl Fn(&str) -> String) -> String {
    let dir = changed(format, |tensors| {
        let key = tensors.keys().find(|k| k.starts_with(WEIGHT) && k.contains("quant_state")).unwrap().clone();
        let text = String::from_utf8(tensors[&key].to_vec::<u8>().unwrap()).unwrap();
        let new = change(&text).into_bytes();
        let n = new.len();
        tensors.insert(key, Tensor::from_vec(new, [n]).unwrap());
    });
    error(dir.path())
}

#[test]
fn parts_that_do_not_make_a_weight_are_refused() {
    let says = |error: String, words: &[&str]| {
        assert!(words.iter().all(|w| error.contains(w)) && error.contains(WEIGHT), "{words:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    for part in ["absmax", "quant_map", "nested_quant_map", "nested_absmax"] {
        let dir = changed("nf4_double", |t| drop(t.remove(&format!("{WEIGHT}.{part}")).unwrap()));
        says(error(dir.path()), &[part]);
    }
    let short = |part: &'static str| {
        let dir = changed("nf4_double", move |t| {
            let short = t[&format!("{WEIGHT}.{part}")].narrow(0, 0, 1).unwrap().contiguous().unwrap();
            // One of one is what there may be.
            let short = if part == "nested_absmax" { Tensor::from_vec(vec![1f32; 2], [2]).unwrap() } else { short };
            t.insert(format!("{WEIGHT}.{part}"), short);
        });
        error(dir.path())
    };
    for part in ["absmax", "nested_quant_map", "nested_absmax"] {
        says(short(part), &["element(s) do not fill", part]);
    }
    says(state("fp4", |s| s[..s.len() / 2].to_owned()), &["damaged"]);
    says(state("fp4", |_| "[1]".to_owned()), &["damaged"]);
    says(state("fp4", |s| s.replace("\"fp4\"", "\"nf4\"")), &["contradicts"]);
    says(state("fp4", |s| s.replace("64", "48")), &["blocksize is 48"]);
    says(state("fp4", |s| s.replace("64", "128")), &["do not fill"]);
    says(state("fp4", |s| s.replace("64", "\"x\"")), &["blocksize", "whole number"]);
    says(state("fp4", |s| s.replace("float32", "int64")), &["dtype", "int64"]);
    says(state("fp4", |s| s.replace("[44, 24]", "[44, 24, 1]")), &["shape"]);
    says(state("fp4", |s| s.replace("[44, 24]", "[24, 44]")), &["[24, 44]", "[44, 24]"]);
    says(state("fp4", |s| s.replace("[44, 24]", "[18446744073709551615, 2]")), &[]);
    says(
        state("nf4_double", |s| s.replace("\"nested_blocksize\": 256", "\"nested_blocksize\": 0")),
        &["nested_blocksize"],
    );
    let dir = changed("fp4", |t| {
        let map = t[&format!("{WEIGHT}.quant_map")].to_vec::<f32>().unwrap().into_iter().map(|x| x * 0.5).collect();
        t.insert(format!("{WEIGHT}.quant_map"), Tensor::from_vec::<f32>(map, [16]).unwrap());
    });
    says(error(dir.path()), &["quant_map"]);
    let scb = WEIGHT.replace("weight", "SCB");
    let dir = changed("int8", |t| drop(t.remove(&scb).unwrap()));
    says(error(dir.path()), &["int8", "SCB"]);
    let dir =
        changed("int8", |t| drop(t.insert(WEIGHT.replace("weight", "weight_format"), Tensor::scalar(2u8).unwrap())));
    says(error(dir.path()), &["weight_format"]);
    let dir = changed("int8", |t| drop(t.insert(scb.clone(), Tensor::from_vec(vec![1f32; 3], [3]).unwrap())));
    says(error(dir.path()), &["SCB"]);
}

#[test]
fn what_quantised_models_cannot_do_is_said() {
    let open = |format: &str| Pretrained::open(&fixture(&format!("quant/{format}"))).unwrap();
    let train = open("fp4").load(LoadOptions { dtype: None, trainable: true }).map(drop).unwrap_err().to_string();
    assert!(train.contains("use_peft") && train.contains("fp4"), "{train}");
    let how = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 64, double: false };
    let again = open("fp4").quantized(Some(how)).load(LoadOptions::default()).map(drop).unwrap_err().to_string();
    assert!(again.contains("quantised already (fp4)"), "{again}");
    let mut model = open("int8").load(LoadOptions::default()).unwrap();
    let part = planish_nn::adapters::Partial::layers(1, model.layers.len(), vec![], vec![]).unwrap();
    let frozen = planish_nn::adapters::train_only(&mut model, &part).unwrap_err().to_string();
    assert!(frozen.contains("quantised") && frozen.contains("use_peft"), "{frozen}");
    for init in ["pissa", "olora", "loftq"] {
        let init_lora_weights = planish_nn::adapters::LoraInit::parse(init).unwrap();
        let config = LoraConfig { init_lora_weights, target_modules: Targets::AllLinear, ..LoraConfig::default() };
        let refused = attach_lora(&mut model.clone(), &config, 0).unwrap_err().to_string();
        assert!(refused.contains(&format!("init_lora_weights is {init}, which ")), "{refused}");
    }
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("quant/fp4").join(file), dir.path().join(file)).unwrap();
    }
    let mut config = read_json(&dir.path().join("config.json")).unwrap();
    config["quantization_config"]["quant_method"] = "gptq".into();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert!(error(dir.path()).contains("gptq"), "{}", error(dir.path()));
}

/// A gradient of a quantised weight is an error, never silence.
#[test]
fn a_quantised_weight_has_no_gradient() {
    let w = Tensor::from_vec((0..64).map(|i| i as f32).collect(), [2, 32]).unwrap();
    let w = Tensor::packed(FourBit::quantize(&w, FourBitKind::Nf4, 32, false).unwrap());
    let (tape, param) = (Tape::new(), Param::trainable("w", w));
    let x = Var::constant(Tensor::full(1f32, [1, 32]).unwrap());
    let error = linear(&x, &tape.param(&param), None).map(drop).unwrap_err().to_string();
    assert!(error.contains("quantised weight is frozen"), "{error}");
}

fn builtin() -> String {
    fixture("../../train/builtin").to_string_lossy().into_owned()
}

fn write_rows(path: &str) {
    let rows: String = (0..8).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \" is a number\"}}\n")).collect();
    fs::write(path, rows).unwrap();
}

/// Runs the program, which must succeed; what it printed.
fn ok(arguments: &[&str]) -> String {
    let done = planish(arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
    done.stdout
}

#[test]
fn the_program_quantises_merges_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (small, data) = (path("nf4"), path("data.jsonl"));
    write_rows(&data);
    let told = ok(&["quantize", "--model", &builtin(), "-o", &small, "--double-quant", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let weights = told["weights"].as_array().unwrap();
    assert!(
        weights.len() > 4 && told["bytes"].as_f64().unwrap() < 0.3 * told["bytes_as_16_bit"].as_f64().unwrap(),
        "{told}"
    );
    for w in weights {
        let error = w["relative_rms"].as_f64().unwrap();
        assert!(error > 0.02 && error < 0.2, "{w}");
    }
    // Nothing but the model and its tokenizer is left.
    let mut names: Vec<String> =
        fs::read_dir(&small).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.contains(&"model.safetensors".into()) && !names.iter().any(|n| n.contains("tmp")), "{names:?}");
    refused(&["quantize", "--model", &small, "-o", &path("again")], "quantised already (nf4)");
    refused(&["quantize", "--model", &builtin(), "-o", &path("again"), "--blocksize", "48"], "blocksize");
    refused(
        &["quantize", "--model", &builtin(), "-o", &path("again"), "--quant-type", "int8", "--double-quant"],
        "int8",
    );
    assert!(!dir.path().join("again").exists());
    let sft = |extra: &[&str]| -> Vec<String> {
        let own = ["sft", "--model", &builtin(), "--dataset", &data, "--max-steps", "2", "--learning-rate", "1e-3"];
        own.iter().chain(extra).map(|s| s.to_string()).collect()
    };
    let run = path("run");
    refused(&sft(&["--output-dir", &run, "--load-in-4bit"]), "use_peft");
    refused(&sft(&["--output-dir", &run, "--load-in-4bit", "--load-in-8bit", "--use-peft"]), "both set");
    refused(&sft(&["--output-dir", &run, "--use-bnb-nested-quant", "--use-peft"]), "load_in_4bit");
    assert!(!dir.path().join("run").exists());
    // The plan counts what is in memory: of the weights of the layers a quarter of 16 bits and the scales.
    let weights = |extra: &[&str]| -> u64 {
        let all = [sft(&["--output-dir", &run, "--use-peft", "--json"]), extra.iter().map(|s| s.to_string()).collect()];
        let mut all: Vec<String> = all.concat();
        all[0] = "plan".into();
        let plan = ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        plan["memory"]["weights"].as_u64().unwrap()
    };
    let saved = weights(&["--dtype", "bfloat16"]) - weights(&["--dtype", "bfloat16", "--load-in-4bit"]);
    let (before, after) = (told["bytes_as_16_bit"].as_f64().unwrap(), told["bytes"].as_f64().unwrap());
    // The scales are not quantised here.
    assert!((saved as f64 - (before - after)).abs() < 0.03 * before, "{saved} of {before}");
    // Quantised on the way or read quantised: the same run.
    let both = [(builtin(), "run", true), (small.clone(), "run2", false)].map(|(model, run, quantise)| {
        let (run, mut arguments) = (path(run), sft(&[]));
        arguments[2] = model;
        arguments.extend(["--output-dir", &run, "--use-peft", "--lora-target-modules", "all-linear"].map(String::from));
        if quantise {
            arguments.extend(["--load-in-4bit", "--bnb-4bit-use-double-quant"].map(String::from));
        }
        ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        fs::read(Path::new(&run).join("final/adapter_model.safetensors")).unwrap()
    });
    assert!(both[0] == both[1], "the adapters differ");
    let adapter = path("run2/final");
    let merged = path("merged");
    ok(&["merge", "--model", &small, "--adapter", &adapter, "-o", &merged]);
    let model = Pretrained::open(Path::new(&merged)).unwrap().load(LoadOptions::default()).unwrap();
    assert!(read_json(&Path::new(&merged).join("config.json")).unwrap()["quantization_config"].is_null());
    let dtypes: Vec<DType> = model.layers[0].linears().iter().map(|l| l.weight.base.value().dtype()).collect();
    assert!(dtypes.iter().all(|d| *d == DType::BF16), "{dtypes:?}");
    let again = path("requantised");
    let told = ok(&["merge", "--model", &small, "--adapter", &adapter, "-o", &again, "--requantize", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let kl = told["requantized"]["kl"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&kl) && told["requantized"]["tokens"].as_u64().unwrap() > 20, "{told}");
    let model = Pretrained::open(Path::new(&again)).unwrap().load(LoadOptions::default()).unwrap();
    assert!(model.layers[0].linears()[0].weight.base.value().quantized().is_some());
    let plain = path("plain");
    let done = planish(&["merge", "--model", &builtin(), "--adapter", &adapter, "-o", &plain, "--requantize"]);
    let said: Vec<&str> = done.stderr.lines().collect();
    assert!(done.code == 2 && said.len() == 2 && said[1].contains("`planish quantize`"), "{done:?}");
    // The adapter is of the quantised model.
    assert!(said[0].starts_with("note: ") && said[0].contains("says that its base is"), "{done:?}");
    assert!(!Path::new(&plain).exists());
}

/// Several files hold, tensor for tensor, the bytes of one, and are the same model.
#[test]
fn shards_hold_what_one_file_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let data = path("data.jsonl");
    write_rows(&data);
    for (kind, limit) in [(&["--double-quant"][..], 100_000), (&["--quant-type", "int8"][..], 150_000)] {
        let (one, many) = (path("one"), path("many"));
        let quantise = |out: &str, size: &str| {
            let own =
                ["quantize", "--model", &builtin(), "-o", out, "--max-shard-size", size, "--overwrite-output-dir"];
            ok(&[&own[..], kind].concat())
        };
        quantise(&one, "1GB");
        let size = format!("{}kB", limit / 1000);
        assert_eq!(quantise(&many, &size).lines().count(), quantise(&one, "1GB").lines().count());
        let shards: Vec<PathBuf> = fs::read_dir(&many)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
            .collect();
        assert!(shards.len() > 4 && !Path::new(&many).join("model.safetensors").exists(), "{shards:?}");
        let (whole, parts) = (WeightsReader::open(&one).unwrap(), WeightsReader::open(&many).unwrap());
        let bytes = |reader: &WeightsReader, name: &String| {
            let tensor = reader.get(name).unwrap();
            let file = fs::read(&reader.meta(name).unwrap().file).unwrap();
            let size = tensor.numel() * tensor.dtype().size();
            let at = reader.meta(name).unwrap().offset;
            (tensor.dtype(), tensor.dims().to_vec(), file[at..at + size].to_vec())
        };
        let mut names = whole.names().to_vec();
        names.sort();
        let map = read_json(&Path::new(&many).join("model.safetensors.index.json")).unwrap();
        let mut of_map: Vec<&String> = map["weight_map"].as_object().unwrap().keys().collect();
        of_map.sort();
        assert!(names.iter().eq(of_map) && names.len() == parts.names().len());
        let mut total = 0;
        for name in &names {
            let (want, got) = (bytes(&whole, name), bytes(&parts, name));
            assert!(want == got, "{name}");
            total += got.2.len() as u64;
            let file = &parts.meta(name).unwrap().file;
            assert_eq!(map["weight_map"][name], file.file_name().unwrap().to_str().unwrap(), "{name}");
        }
        assert_eq!(map["metadata"]["total_size"], total);
        for shard in shards {
            let reader = WeightsReader::open(&shard).unwrap();
            let held: usize = reader.names().iter().map(|name| bytes(&reader, name).2.len()).sum();
            let weights = reader.names().iter().filter(|n| n.ends_with("weight")).count();
            assert!(held <= limit || weights == 1, "{}: {held} bytes, {weights} weights", shard.display());
        }
        // Beside them nothing differs, and the model is the same.
        for entry in fs::read_dir(&one).unwrap().map(|entry| entry.unwrap().path()) {
            let other = Path::new(&many).join(entry.file_name().unwrap());
            if entry.file_name().unwrap() != "model.safetensors" {
                assert!(fs::read(&entry).unwrap() == fs::read(&other).unwrap(), "{}", other.display());
            }
        }
        let scores = [("one", &one), ("many", &many)].map(|(name, model)| {
            let out = path(&format!("scores-{limit}-{name}.jsonl"));
            ok(&["score", "--model", model, "--dataset", &data, "--output", &out]);
            fs::read_to_string(&out).unwrap()
        });
        assert!(scores[0].contains("logprobs") && scores[0] == scores[1]);
    }
    let refuse = |size: &str| {
        let own = ["quantize", "--model", &builtin(), "-o", &path("refused"), "--max-shard-size", size];
        refused(&own, &format!("--max-shard-size is \"{size}\", which is no size: say 1GB"));
    };
    ["0", "lots", "1XB", "0.1", "99999999TB"].into_iter().for_each(refuse);
    assert!(!dir.path().join("refused").exists());
}

/// A code has no word for NaN or infinity: a weight that holds one is named, and nothing is written or replaced.
#[test]
fn numbers_that_are_none_are_not_quantised() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let data = path("data.jsonl");
    fs::write(&data, "{\"prompt\": \"1\", \"completion\": \" is a number\"}\n".repeat(8)).unwrap();
    let weight = "model.layers.1.mlp.down_proj.weight";
    for (what, number) in [("NaN", f32::NAN), ("inf", f32::INFINITY), ("-inf", f32::NEG_INFINITY)] {
        let model = path(what);
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(builtin()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()) {
            fs::copy(&entry, Path::new(&model).join(entry.file_name().unwrap())).unwrap();
        }
        let reader = WeightsReader::open(builtin()).unwrap();
        let tensor = |name: &String| {
            let tensor = reader.get(name).unwrap();
            if name != weight {
                return tensor;
            }
            let mut values = tensor.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
            values[tensor.dims()[1] * 3 + 5] = number;
            Tensor::from_vec(values, tensor.dims()).unwrap().to_dtype(tensor.dtype()).unwrap()
        };
        let tensors: Vec<_> = reader.names().iter().map(|name| (name.clone(), tensor(name))).collect();
        save_safetensors(Path::new(&model).join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
        let words = format!("`{weight}` holds {what} in row 3, column 5: quantising would make numbers of it");
        let out = path("out");
        for kind in ["nf4", "int8"] {
            let done = planish(&["quantize", "--model", &model, "-o", &out, "--quant-type", kind, "--json"]);
            assert!(done.code == 2 && done.stderr.contains(&words) && done.stdout.is_empty(), "{done:?}");
            assert!(!Path::new(&out).exists());
        }
        let own =
            ["sft", "--model", &model, "--dataset", &data, "--output-dir", &out, "--use-peft", "--max-steps", "1"];
        for bits in ["--load-in-4bit", "--load-in-8bit"] {
            let done = planish(&[&own[..], &[bits]].concat());
            assert!(done.code == 2 && done.stderr.contains(&words), "{done:?}");
        }
        let file = path("model.gguf");
        let done = planish(&["export", "--model", &model, "--quant", "q8_0", "-o", &file]);
        assert!(done.code == 2 && done.stderr.contains(&format!("holds {what}, which is no number")), "{done:?}");
        assert!(!Path::new(&file).exists());
        // Over a model that is there.
        let there = path(&format!("there-{what}"));
        assert_eq!(planish(&["quantize", "--model", &builtin(), "-o", &there]).code, 0);
        let before = fs::read(Path::new(&there).join("model.safetensors")).unwrap();
        let done = planish(&["quantize", "--model", &model, "-o", &there, "--overwrite-output-dir"]);
        assert!(done.code == 2 && done.stderr.contains(&words), "{done:?}");
        assert!(before == fs::read(Path::new(&there).join("model.safetensors")).unwrap());
    }
}

/// A Llama with random weights whose rows are whole blocks of 256, with the builtin model's tokenizer.
fn rows_of_256(dir: &str) {
    fs::create_dir(dir).unwrap();
    for file in ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(&builtin()).join(file), Path::new(dir).join(file)).unwrap();
    }
    let mut config = read_json(&Path::new(&builtin()).join("config.json")).unwrap();
    let (hidden, inner, layers, kv) = (256usize, 512usize, 2usize, 128usize);
    for (key, value) in [("hidden_size", hidden), ("intermediate_size", inner), ("num_hidden_layers", layers)] {
        config[key] = value.into();
    }
    // Heads: 4 of queries, 2 of keys and values.
    config["head_dim"] = (hidden / 4).into();
    fs::write(Path::new(dir).join("config.json"), config.to_string()).unwrap();
    let matrix = |name: &str, rows: usize, cols: usize| {
        let stream = Stream::new(3, Purpose::Init, name.len() as u64).substream(name.bytes().map(u64::from).sum());
        let deviation = (1.0 / cols as f64).sqrt();
        let values = (0..(rows * cols) as u64).map(|i| (deviation * stream.normal(i)) as f32).collect();
        let tensor = Tensor::from_vec::<f32>(values, [rows, cols]).unwrap();
        (name.to_owned(), tensor.to_dtype(DType::BF16).unwrap())
    };
    let norm = |name: &str| (name.to_owned(), Tensor::full(1f32, [hidden]).unwrap().to_dtype(DType::BF16).unwrap());
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    let mut tensors = vec![matrix("model.embed_tokens.weight", vocabulary, hidden), norm("model.norm.weight")];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for (part, rows, cols) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ] {
            tensors.push(matrix(&name(part), rows, cols));
        }
        tensors.extend(["input_layernorm", "post_attention_layernorm"].map(|part| norm(&name(part))));
    }
    save_safetensors(Path::new(dir).join("model.safetensors"), tensors, &BTreeMap::new()).unwrap();
}

/// Trains on a GGUF file, with its blocks as they are and as f32: packed weights take at most 2/3 of the memory,
/// and the adapter has the same bits.
fn trained_packed_and_wide(dir: &Path, base: &str, data: &str, what: &str) {
    let trained = ["auto", "float32"].map(|dtype| {
        let out = dir.join(format!("{what}-{dtype}")).to_string_lossy().into_owned();
        let own = ["--model", base, "--dataset", data, "--output-dir", &out, "--dtype", dtype, "--use-peft"];
        let more = ["--lora-target-modules", "all-linear", "--max-steps", "3", "--learning-rate", "1e-2"];
        let plan: serde_json::Value =
            serde_json::from_str(&ok(&[&["plan", "--json"], &own[..], &more].concat())).unwrap();
        ok(&[&["sft"], &own[..], &more].concat());
        let adapter = fs::read(Path::new(&out).join("final/adapter_model.safetensors")).unwrap();
        (plan["memory"]["weights"].as_u64().unwrap(), adapter)
    });
    let [(packed, adapter), (wide, of_wide)] = &trained;
    assert!(3 * packed < 2 * wide, "{what}: {packed} bytes packed, {wide} as f32");
    assert!(adapter == of_wide, "{what}: the adapters differ");
}

/// With `dtype` auto a GGUF file's blocks stay packed, which is a third of the memory and not a bit of the result.
#[test]
fn a_gguf_file_is_trained_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (base, data) = (path("base.gguf"), path("data.jsonl"));
    write_rows(&data);
    // Rows of 128: in place of blocks of 256 there are Q5_0 and Q8_0.
    for quant in ["q4_0", "q4_k_m", "q8_0"] {
        ok(&["export", "--model", "builtin", "--quant", quant, "-o", &base, "--overwrite"]);
        trained_packed_and_wide(dir.path(), &base, &data, quant);
    }
}

/// The same of blocks of 256, each kind of which is there.
#[test]
fn a_gguf_file_of_k_quants_is_trained_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (model, base, data) = (path("model"), path("base.gguf"), path("data.jsonl"));
    write_rows(&data);
    rows_of_256(&model);
    // What llama.cpp's mixes give the values and the way down of the last layer.
    let mixes = [
        ("q4_k_m", GgmlType::Q4_K, GgmlType::Q6_K),
        ("q5_k_m", GgmlType::Q5_K, GgmlType::Q6_K),
        ("q6_k", GgmlType::Q6_K, GgmlType::Q6_K),
    ];
    for (quant, main, more) in mixes {
        ok(&["export", "--model", &model, "--quant", quant, "-o", &base, "--overwrite"]);
        let mut seen = 0;
        for tensor in GgufFile::open(&base).unwrap().tensors().filter(|tensor| tensor.shape.len() == 2) {
            let most =
                ["token_embd.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight"].contains(&tensor.name.as_str());
            assert_eq!(tensor.kind, if most { more } else { main }, "{quant}: {}", tensor.name);
            seen += 1;
        }
        assert_eq!(seen, 1 + 2 * 7);
        trained_packed_and_wide(dir.path(), &base, &data, quant);
    }
}

/// Law 6 on a quantised base.
#[test]
fn a_resumed_run_is_the_run_that_was_not_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let data = path("data.jsonl");
    let rows: String =
        (0..16).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \" or {}\"}}\n", i * 7)).collect();
    fs::write(&data, rows).unwrap();
    let run = |out: &str, extra: &[&str]| {
        let mut arguments =
            vec!["sft", "--model", "builtin", "--dataset", &data, "--output-dir", out, "--load-in-4bit"];
        arguments.extend(["--use-peft", "--lora-dropout", "0.1", "--per-device-train-batch-size", "4"]);
        arguments.extend(["--learning-rate", "1e-3", "--save-steps", "2", "--max-steps", "4"]);
        arguments.extend(extra);
        let done = planish(&arguments);
        assert_eq!(done.code, 0, "{done:?}");
        fs::read(Path::new(out).join("final/adapter_model.safetensors")).unwrap()
    };
    let (whole, cut) = (path("whole"), path("cut"));
    let want = run(&whole, &[]);
    fs::create_dir(&cut).unwrap();
    let from = path("whole/checkpoint-2");
    let got = run(&cut, &["--resume-from-checkpoint", &from, "--threads", "3"]);
    assert!(got == want, "the adapters differ");
}

/// `--load-in-4bit` and its like make the weights that `planish quantize` writes: log-probabilities have the bits of its files.
#[test]
fn commands_quantise_what_they_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let data = path("data.jsonl");
    fs::write(&data, "{\"prompt\": \"1\", \"completion\": \" is a number\"}\n".repeat(3)).unwrap();
    let score = |name: &str, model: &[&str]| {
        let out = path(&format!("{name}.jsonl"));
        ok(&[&["score", "--dataset", &data, "--output", &out, "--model"], model].concat());
        fs::read_to_string(&out).unwrap()
    };
    let plain = score("plain", &[&builtin()]);
    let kinds: [(&str, &[&str], &[&str]); 3] = [
        ("nf4", &["--quant-type", "nf4", "--double-quant"], &["--load-in-4bit", "--use-bnb-nested-quant"]),
        ("fp4", &["--quant-type", "fp4"], &["--load-in-4bit", "--bnb-4bit-quant-type", "fp4"]),
        ("int8", &["--quant-type", "int8"], &["--load-in-8bit"]),
    ];
    for (name, written, loaded) in kinds {
        let out = path(name);
        ok(&[&["quantize", "--model", &builtin(), "-o", &out][..], written].concat());
        let files = score(&format!("{name}-files"), &[&out]);
        let flags = score(&format!("{name}-flags"), &[&[&builtin()[..]][..], loaded].concat());
        assert!(files == flags && files != plain, "{name}");
    }
    let own = ["generate", "--model", &builtin(), "--prompt", "1"];
    refused(&[&own[..], &["--load-in-4bit", "--load-in-8bit"]].concat(), "--load-in-8bit");
    refused(&[&own[..], &["--use-bnb-nested-quant"]].concat(), "--load-in-4bit");
}
