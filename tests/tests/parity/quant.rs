//! Quantised weights against bitsandbytes, bit for bit, and training on them against PEFT.

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::adapters::{LoraConfig, Targets, attach_lora, load_adapter, replace_lora_weights_loftq};
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::quantize::QuantizeAs;
use planish_nn::weights::{WeightsReader, stored};
use planish_tensor::quant::{FourBit, FourBitKind, Int8, Layout, Nested, Quantized, Scales};
use planish_tensor::{DType, Tensor};
use planish_train::losses::{LossSum, cross_entropy};
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};

use crate::sft::rows;
use crate::{difference, fixture, packed_logits};

const FORMATS: [&str; 3] = ["nf4_double", "fp4", "int8"];

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn four(q: &Quantized) -> &FourBit {
    match q.layout() {
        Layout::FourBit(four) => four,
        other => panic!("{other:?}"),
    }
}

/// What this program makes of a weight is what bitsandbytes makes of it, to the last byte, and both read it alike.
#[test]
fn four_bits_are_those_of_bitsandbytes() {
    let reader = WeightsReader::open(fixture("quant/four_bit.safetensors")).unwrap();
    let cases = read_json(&fixture("quant/cases.json")).unwrap();
    for (name, case) in cases.as_object().unwrap() {
        let part = |part: &str| reader.get(&format!("{name}.{part}")).unwrap();
        let kind = FourBitKind::parse(case["kind"].as_str().unwrap()).unwrap();
        let (block, double) = (case["block"].as_u64().unwrap() as usize, case["double"].as_bool().unwrap());
        let weight = part("weight");
        let made = FourBit::quantize(&weight, kind, block, double).unwrap();
        let theirs = match double {
            false => Scales::Plain(part("absmax")),
            true => Scales::Nested(Nested {
                codes: part("absmax"),
                absmax: part("nested_absmax"),
                code: part("nested_quant_map"),
                block: 256,
                offset: part("offset").to_vec::<f32>().unwrap()[0],
            }),
        };
        match (four(&made).scales(), &theirs) {
            (Scales::Plain(a), Scales::Plain(b)) => assert_eq!(bits(a), bits(b), "{name}: absmax"),
            (Scales::Nested(a), Scales::Nested(b)) => {
                assert_eq!(a.offset.to_bits(), b.offset.to_bits(), "{name}: offset {} {}", a.offset, b.offset);
                assert_eq!(bits(&a.code), bits(&b.code), "{name}: the second code");
                assert_eq!(bits(&a.absmax), bits(&b.absmax), "{name}: nested absmax");
                assert_eq!(a.codes.to_vec::<u8>().unwrap(), b.codes.to_vec::<u8>().unwrap(), "{name}: absmax");
            }
            _ => panic!("{name}: other scales"),
        }
        let bytes = |t: &Tensor| t.to_vec::<u8>().unwrap();
        assert_eq!(bytes(four(&made).bytes()), bytes(&part("packed")), "{name}: nibbles");
        // As numbers: of fp4's second zero bitsandbytes makes -0 or, where rows are odd, +0.
        let floats = |t: &Tensor| t.to_vec::<f32>().unwrap();
        assert_eq!(floats(&made.dequantize(DType::F32).unwrap()), floats(&part("values")), "{name}: values");
        let shape = [weight.dims()[0], weight.dims()[1]];
        let read = FourBit::from_parts(shape, kind, block, &part("packed"), theirs, DType::F32).unwrap();
        assert_eq!(
            bits(&read.dequantize(DType::F32).unwrap()),
            bits(&made.dequantize(DType::F32).unwrap()),
            "{name}: values of their parts"
        );
    }
}

/// Every block size, code and kind of scales, over several blocks and blocks of scales.
#[test]
fn every_block_size_is_that_of_bitsandbytes() {
    let cases = read_json(&fixture("quant/blocks.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 32);
    let mut wrong = Vec::new();
    for case in cases {
        let number = |v: &serde_json::Value| v.as_u64().unwrap();
        let (block, double) = (number(&case["block"]) as usize, case["double"].as_bool().unwrap());
        let shape = [0, 1].map(|i| number(&case["shape"][i]) as usize);
        let element = |i: u64| {
            let uniform = (i * 2_654_435_761 % (1 << 32)) as f64 / (1u64 << 32) as f64 - 0.5;
            (uniform * (1 + i / 97 % 13) as f64) as f32
        };
        let weight = Tensor::from_vec((0..(shape[0] * shape[1]) as u64).map(element).collect(), shape).unwrap();
        let kind = FourBitKind::parse(case["kind"].as_str().unwrap()).unwrap();
        let made = FourBit::quantize(&weight, kind, block, double).unwrap();
        let bytes = |t: &Tensor| t.to_vec::<u8>().unwrap();
        let floats = |t: &Tensor| t.to_vec::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let values = made.dequantize(DType::F32).unwrap().to_vec::<f32>().unwrap();
        // Of fp4's second zero bitsandbytes makes -0 or +0.
        let values = values.iter().flat_map(|x| (x + 0.0).to_le_bytes()).collect();
        let mut parts = vec![("packed", bytes(four(&made).bytes()))];
        match four(&made).scales() {
            Scales::Plain(absmax) => parts.push(("absmax", floats(absmax))),
            Scales::Nested(nested) => parts.extend([
                ("absmax", bytes(&nested.codes)),
                ("nested_absmax", floats(&nested.absmax)),
                ("nested_quant_map", floats(&nested.code)),
                ("offset", nested.offset.to_le_bytes().to_vec()),
            ]),
        }
        parts.push(("values", values));
        assert_eq!(parts.len(), case["crc"].as_object().unwrap().len());
        let differs = |(part, bytes): &(&str, Vec<u8>)| u64::from(crc32(bytes)) != number(&case["crc"][part]);
        let differing = parts.iter().filter(|part| differs(part)).map(|(part, _)| *part);
        wrong.extend(differing.map(|part| format!("{kind:?} in blocks of {block}, double {double}: {part}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// As `zlib.crc32`.
fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> =
        (0..256u32).map(|n| (0..8).fold(n, |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })).collect();
    !bytes.iter().fold(!0, |crc: u32, &b| table[(crc as u8 ^ b) as usize] ^ (crc >> 8))
}

#[test]
fn int8_is_that_of_bitsandbytes() {
    let reader = WeightsReader::open(fixture("quant/int8.safetensors")).unwrap();
    for name in ["f32", "bf16"] {
        let part = |part: &str| reader.get(&format!("{name}.{part}")).unwrap();
        let made = Int8::quantize(&part("weight")).unwrap();
        let Layout::Int8(int8) = made.layout() else { panic!() };
        assert_eq!(int8.bytes().to_vec::<i8>().unwrap(), part("packed").to_vec::<i8>().unwrap(), "{name}");
        assert_eq!(bits(int8.scales()), bits(&part("scb")), "{name}");
        assert_eq!(bits(&made.dequantize(DType::F32).unwrap()), bits(&part("values")), "{name}");
    }
}

/// Scales are centred by torch's mean: with each value 32 times in a row, the scales are the values.
#[test]
fn the_mean_of_scales_is_rounded_as_torch_rounds_it() {
    for pair in read_json(&fixture("quant/means.json")).unwrap().as_array().unwrap() {
        let (n, want) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32);
        let value = |i: u64| (((i * 2_654_435_761) % (1 << 32)) as f64 / (1u64 << 32) as f64) as f32;
        let weight: Vec<f32> = (0..n * 32).map(|i| value(i / 32)).collect();
        let weight = Tensor::from_vec(weight, [n as usize, 32]).unwrap();
        let made = FourBit::quantize(&weight, FourBitKind::Nf4, 32, true).unwrap();
        let Scales::Nested(nested) = four(&made).scales() else { panic!() };
        assert_eq!(nested.offset.to_bits(), want.to_bits(), "{n} scales: {} is not {want}", nested.offset);
    }
}

fn how(format: &str) -> QuantizeAs {
    let kind = if format == "fp4" { FourBitKind::Fp4 } else { FourBitKind::Nf4 };
    match format {
        "int8" => QuantizeAs::Int8,
        _ => QuantizeAs::FourBit { kind, block: 64, double: format == "nf4_double" },
    }
}

fn base(how: Option<QuantizeAs>) -> Model {
    Pretrained::open(&fixture("models/smollm2")).unwrap().quantized(how).load(LoadOptions::default()).unwrap()
}

fn open(format: &str) -> Model {
    Pretrained::open(&fixture(&format!("quant/{format}"))).unwrap().load(LoadOptions::default()).unwrap()
}

/// A model that transformers saved quantised computes what it computes there, quantising the base as it is loaded
/// gives the same weights, and they are saved as the same parts.
#[test]
fn models_are_read_made_and_written_as_by_transformers() {
    for format in FORMATS {
        let (read, made) = (open(format), base(Some(how(format))));
        let expected = WeightsReader::open(fixture(&format!("quant/{format}/expected.safetensors"))).unwrap();
        let sequences: Vec<Vec<u32>> = (0..2)
            .map(|i| expected.get(&format!("ids.{i}")).unwrap().to_vec::<i32>().unwrap())
            .map(|ids| ids.into_iter().map(|id| id as u32).collect())
            .collect();
        for (model, what) in [(&read, "read"), (&made, "made")] {
            for (i, got) in packed_logits(model, &Ctx::inference(), &sequences).into_iter().enumerate() {
                let want = expected.get(&format!("logits.{i}")).unwrap().to_vec::<f32>().unwrap();
                // Logits of about 10 in f32, by another order of sums.
                let worst = difference(&got, &want);
                assert!(worst <= 2e-4, "{format} {what}: logits off by {worst}");
            }
        }
        let theirs = WeightsReader::open(fixture(&format!("quant/{format}"))).unwrap();
        let out = tempfile::tempdir().unwrap();
        made.save(out.path()).unwrap();
        let ours = WeightsReader::open(out.path()).unwrap();
        let sorted = |r: &WeightsReader| {
            let mut names = r.names().to_vec();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{format}");
        for name in ours.names() {
            let (a, b) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            if name.contains("quant_state") {
                let json =
                    |t: &Tensor| -> serde_json::Value { serde_json::from_slice(t.as_slice::<u8>().unwrap()).unwrap() };
                assert_eq!(json(&a), json(&b), "{format}: {name}");
                continue;
            }
            assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{format}: {name}");
            let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
            assert_eq!(values(&a), values(&b), "{format}: {name}");
        }
        let config =
            |dir: &std::path::Path| read_json(&dir.join("config.json")).unwrap()["quantization_config"].clone();
        assert_eq!(config(out.path()), config(&fixture(&format!("quant/{format}"))), "{format}");
        // What is written is read again, and saved again as it was.
        let again = Pretrained::open(out.path()).unwrap().load(LoadOptions::default()).unwrap();
        for (a, b) in again.base_params().iter().zip(made.base_params()) {
            let parts = |p: &planish_autograd::Param| -> Vec<Vec<u64>> {
                let bits = |t: Tensor| {
                    t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
                };
                stored(p.name(), &p.value()).unwrap().into_iter().map(|(_, t)| bits(t)).collect()
            };
            assert_eq!(parts(a), parts(&b), "{format}: {}", a.name());
        }
    }
}

/// Six steps of QLoRA.
#[test]
fn trajectories_on_a_quantised_base_are_those_of_peft() {
    let dir = fixture("quant/qlora");
    let mut model = open("nf4_double");
    load_adapter(&mut model, &dir.join("adapter_init")).unwrap();
    follows(&model, &dir.join("steps.json"));
    for format in ["fp4", "int8"] {
        let mut model = open(format);
        load_adapter(&mut model, &dir.join("adapter_init")).unwrap();
        follows(&model, &dir.join(format!("{format}.json")));
    }
}

/// Six steps from what the quantisation lost.
#[test]
fn loftq_on_a_quantised_base_is_that_of_peft() {
    let files = Pretrained::open(&fixture("models/smollm2")).unwrap().quantized(Some(how("nf4_double")));
    let mut model = files.load(LoadOptions::default()).unwrap();
    let sequences = [(0..30).collect::<Vec<u32>>()];
    let logits = |model: &Model| packed_logits(model, &Ctx::inference(), &sequences);
    let whole = logits(&base(None));
    let far = |model: &Model| -> f32 { logits(model)[0].iter().zip(&whole[0]).map(|(a, b)| (a - b).powi(2)).sum() };
    let config = LoraConfig { r: 4, lora_alpha: 4.0, target_modules: Targets::AllLinear, ..LoraConfig::default() };
    attach_lora(&mut model, &config, 0).unwrap();
    let before = far(&model);
    replace_lora_weights_loftq(&model, &config, &files).unwrap();
    let after = far(&model);
    assert!(after < 0.7 * before, "{before} and {after}");
    follows(&model, &fixture("quant/loftq.json"));
    // The scale is known: the update, and what is computed, are the same at any.
    for lora_alpha in [4.0, 16.0] {
        let (mut other, config) = (base(Some(how("nf4_double"))), LoraConfig { lora_alpha, ..config.clone() });
        attach_lora(&mut other, &config, 0).unwrap();
        replace_lora_weights_loftq(&other, &config, &files).unwrap();
        let found = far(&other);
        assert!((found - after).abs() <= 1e-3 * after, "{lora_alpha}: {found} and {after}");
    }
    let refused = |model: &mut Model, config: &LoraConfig, files: &Pretrained| {
        attach_lora(model, config, 0).unwrap();
        replace_lora_weights_loftq(model, config, files).unwrap_err().to_string()
    };
    let quantised = Pretrained::open(&fixture("quant/nf4_double")).unwrap();
    let text = refused(&mut open("nf4_double"), &config, &quantised);
    assert!(text.contains("begins with what quantising loses"), "{text}");
    let text = refused(&mut base(None), &config, &files);
    assert!(text.contains("none of those that the adapter is on is"), "{text}");
}

/// Trains as a fixture's steps were made.
fn follows(model: &Model, path: &std::path::Path) {
    let steps = read_json(path).unwrap();
    let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(&model.params(), settings).unwrap();
    for (s, (step, rows)) in steps["steps"].as_array().unwrap().iter().zip(rows().chunks(8)).enumerate() {
        let mut sum = LossSum::default();
        let batch = Packed::new(&rows.iter().map(|r| &r.ids).collect::<Vec<_>>());
        let mask: Vec<bool> = rows.iter().flat_map(|r| r.mask.iter().copied()).collect();
        sum += cross_entropy(model, &Ctx::training(&Tape::new(), None), &batch, &mask, true).unwrap();
        assert_eq!(sum.count, step["tokens"].as_u64().unwrap());
        let scale = 1.0 / sum.count as f64;
        let norm = grad_norm(optimizer.params(), scale).unwrap();
        let clip = (8.0 / (norm + 1e-6)).min(1.0);
        optimizer.step(Update { learning_rate: 2e-2, grad_scale: scale * clip }).unwrap();
        // As for f32 bases: the weights are the same numbers on both sides.
        for (what, got, tolerance) in [("loss", sum.mean(), 1e-5), ("grad_norm", norm, 1e-4)] {
            let want = step[what].as_f64().unwrap();
            assert!((got - want).abs() <= tolerance * want, "step {}: {what} {got}, PEFT {want}", s + 1);
        }
    }
}
