use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use planish_tensor::{Bool, DType, Mmap, Tensor};
use proptest::prelude::*;

use super::*;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A map of bytes that lie in no file.
fn map(bytes: &[u8]) -> Arc<Mmap> {
    let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).unwrap();
    map[..bytes.len()].copy_from_slice(bytes);
    Arc::new(map.make_read_only().unwrap())
}

fn open(bytes: &[u8]) -> Result<WeightsReader> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    WeightsReader::open(&path)
}

fn every_dtype() -> Vec<(String, Tensor)> {
    let f = [0.5f32, -1.0, 2.25, f32::INFINITY, -0.0, 7.0];
    let tensors = vec![
        Tensor::from_vec(f.map(f64::from).to_vec(), [2, 3]),
        Tensor::from_vec(f.to_vec(), [3, 2]),
        Tensor::from_vec(f.map(bf16::from_f32).to_vec(), [6]),
        Tensor::from_vec(f.map(f16::from_f32).to_vec(), [1, 6, 1]),
        Tensor::from_vec(vec![i64::MIN, i64::MAX], [2]),
        Tensor::from_vec(vec![i32::MIN, 7, i32::MAX], [3]),
        Tensor::from_vec(vec![u32::MAX], ()),
        Tensor::from_vec(vec![1u8, 2, 255], [3]),
        Tensor::from_vec(vec![Bool::from(true), Bool::from(false)], [2]),
        Tensor::zeros([0, 4], DType::F32),
    ];
    tensors.into_iter().enumerate().map(|(i, t)| (format!("t{i}"), t.unwrap())).collect()
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |t: &Tensor| {
        let dir = tempfile::tempdir().unwrap();
        save_safetensors(dir.path().join("t"), [("t".into(), t.clone())], &BTreeMap::new()).unwrap();
        fs::read(dir.path().join("t")).unwrap()
    };
    bytes(a) == bytes(b)
}

#[test]
fn every_dtype_survives_and_lies_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let metadata = BTreeMap::from([("origin".to_owned(), "test".to_owned())]);
    save_safetensors(&path, every_dtype(), &metadata).unwrap();

    let reader = WeightsReader::open(dir.path()).unwrap();
    assert_eq!(reader.names().len(), 10);
    assert_eq!(reader.metadata()["origin"], "test");
    assert_eq!(reader.metadata()["format"], "pt");
    for (name, expected) in every_dtype() {
        let tensor = reader.get(&name).unwrap();
        let meta = reader.meta(&name).unwrap();
        assert_eq!((meta.dtype, &meta.shape[..], &*meta.file), (expected.dtype(), expected.dims(), &*path));
        assert_eq!(tensor.dims(), expected.dims());
        assert!(tensor.is_mapped(), "{name} was copied");
        assert!(same(&tensor, &expected), "{name}");
    }
    assert_eq!(reader.get("t4").unwrap().to_vec::<i64>().unwrap(), [i64::MIN, i64::MAX]);

    // The reference implementation reads the same.
    let bytes = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in theirs.tensors() {
        assert_eq!(view.shape(), reader.get(&name).unwrap().dims());
        let at = reader.meta(&name).unwrap().offset;
        assert_eq!(view.data(), &bytes[at..at + view.data().len()]);
    }
}

#[test]
fn views_are_written_as_they_are_seen_and_order_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).unwrap();
    let tensors = [("b".to_owned(), x.transpose(0, 1).unwrap()), ("a".to_owned(), x.narrow(1, 1, 2).unwrap())];
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    save_safetensors(&one, tensors.clone(), &BTreeMap::new()).unwrap();
    save_safetensors(&two, tensors.into_iter().rev(), &BTreeMap::new()).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let reader = WeightsReader::open(&one).unwrap();
    assert_eq!(reader.get("b").unwrap().to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(reader.get("a").unwrap().to_vec::<f32>().unwrap(), [2.0, 3.0, 5.0, 6.0]);
}

#[test]
fn misaligned_data_is_copied() {
    // 73 bytes of header: the data starts at byte 81.
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let reader = open(&file(&format!("{header:<73}"), &2.5f32.to_le_bytes())).unwrap();
    let tensor = reader.get("a").unwrap();
    assert!(!tensor.is_mapped());
    assert_eq!(tensor.to_vec::<f32>().unwrap(), [2.5]);
}

#[test]
fn hostile_files_are_refused_by_name() {
    let entry = |name: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |entries: &[String], data: usize| file(&format!("{{{}}}", entries.join(",")), &vec![0; data]);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "truncated"),
        (vec![1; 7], "needs 8 bytes"),
        (file("{}", &[])[..9].to_vec(), "the header needs 10 bytes, but the file has 9"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        (100_000_001u64.to_le_bytes().to_vec(), "claims 100000001"),
        (file("", &[]), "header is malformed"),
        (file("[]", &[]), "expected a map from tensor names"),
        (file("{\"a\":1}", &[]), "header is malformed"),
        (file("{} {}", &[]), "trailing characters"),
        (b"\x04\0\0\0\0\0\0\0{\"\xff\"".to_vec(), "header is malformed"),
        (file(r#"{"__metadata__":{"a":1}}"#, &[]), "expected a string"),
        (file(r#"{"__metadata__":{"a":"1","a":"2"}}"#, &[]), "given twice"),
        (file(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), "given twice"),
        (file(r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#, &[0]), "\"a\" has dtype F8_E4M3"),
        (file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#, &[0]), "unknown field"),
        (file(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, &[0]), "header is malformed"),
        (file(r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, &[0]), "header is malformed"),
        (one(&[entry("a", "[4]", 0, 4), entry("a", "[4]", 4, 8)], 8), "\"a\" is declared twice"),
        (one(&[entry("a", "[4]", 0, 4), entry("b", "[4]", 2, 6)], 6), "\"b\" overlaps tensor \"a\""),
        (one(&[entry("a", "[4]", 0, 4), entry("b", "[4]", 0, 4)], 4), "overlaps"),
        (one(&[entry("a", "[4]", 0, 4), entry("b", "[4]", 6, 10)], 10), "bytes 4..6 of the data belong to no tensor"),
        (one(&[entry("a", "[4]", 0, 4)], 5), "bytes 4..5"),
        (one(&[entry("a", "[4]", 4, 0)], 4), "before it starts"),
        (one(&[entry("a", "[3]", 0, 4)], 4), "takes 3 bytes, but its offsets give it 4"),
        (one(&[entry("a", "[4]", 0, 4)], 3), "the file is truncated"),
        (one(&[entry("a", "[4]", u64::MAX - 4, u64::MAX)], 4), "the file is truncated"),
        (one(&[entry("a", "[4294967296,4294967296]", 0, 0)], 0), "cannot be addressed"),
        (one(&[entry("a", "[4294967296,4294967296,0]", 0, 0)], 0), "cannot be addressed"),
        (one(&[entry("a", &format!("{:?}", [1; 17]), 0, 1)], 1), "has 17 dimensions"),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(error.contains("x.safetensors"), "{error:?} does not name the file");
    }
    let long = format!("{{\"a\":{{\"dtype\":\"U8\",\"shape\":\"{}\"}}}}", "é".repeat(100_000));
    assert!(open(&file(&long, &[])).unwrap_err().to_string().len() < 600);
}

#[test]
fn empty_tensors_may_lie_anywhere_between_others() {
    let header = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "z":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},"a":{"dtype":"F32","shape":[5,0],"data_offsets":[0,0]}}"#;
    let reader = open(&file(header, &[7, 9])).unwrap();
    assert_eq!(reader.get("b").unwrap().to_vec::<u8>().unwrap(), [7, 9]);
    assert_eq!(reader.get("a").unwrap().dims(), [5, 0]);
    assert!(open(&file("{}", &[])).unwrap().names().is_empty());
}

fn shards(dir: &Path) {
    let u8s = |n: usize| Tensor::from_vec(vec![n as u8; n], [n]).unwrap();
    let tensors = [("a", 4), ("b", 4), ("c", 9), ("d", 1)].map(|(name, n)| (name.to_owned(), u8s(n)));
    save_sharded(dir, tensors, 8).unwrap();
}

#[test]
fn sharded_models_round_trip_and_replace_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path());
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let shard = |i| format!("model-0000{i}-of-00003.safetensors");
    assert_eq!(names, [shard(1), shard(2), shard(3), INDEX_FILE.to_owned()]);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 18);
    assert_eq!(index["weight_map"]["c"], shard(2));

    for path in [dir.path().to_path_buf(), dir.path().join(INDEX_FILE)] {
        let reader = WeightsReader::open(path).unwrap();
        assert_eq!(reader.names(), ["a", "b", "c", "d"]);
        assert_eq!(reader.get("c").unwrap().to_vec::<u8>().unwrap(), [9; 9]);
        assert_eq!(reader.files().count(), 3);
    }

    // Saving from the mapped tensors over their own files must not disturb them.
    let reader = WeightsReader::open(dir.path()).unwrap();
    let tensors: Vec<_> = reader.names().iter().map(|n| (n.clone(), reader.get(n).unwrap())).collect();
    save_sharded(dir.path(), tensors, DEFAULT_MAX_SHARD_BYTES).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let single = WeightsReader::open(dir.path()).unwrap();
    assert_eq!(single.get("b").unwrap().to_vec::<u8>().unwrap(), [4; 4]);
    assert_eq!(reader.get("b").unwrap().to_vec::<u8>().unwrap(), [4; 4]);
}

/// The parts of a weight go on together, however little of the file is left, and however large they are.
#[test]
fn parts_of_a_quantised_weight_lie_in_one_file() {
    let sizes = [
        ("a.weight", 5),
        ("a.weight.absmax", 2),
        ("a.weight.quant_map", 2),
        ("a.weights", 1),
        ("b.weight", 9),
        ("b.SCB", 1),
        ("b.weight_format", 1),
        ("b.bias", 7),
        ("c.weight", 1),
        ("c.SCB", 1),
    ];
    let dir = tempfile::tempdir().unwrap();
    let tensors = sizes.map(|(name, n)| (name.to_owned(), Tensor::zeros([n], DType::U8).unwrap()));
    save_sharded(dir.path(), tensors, 8).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
    let at = |name: &str| index["weight_map"][name].as_str().unwrap()[6..11].parse::<usize>().unwrap();
    assert_eq!(sizes.map(|(name, _)| at(name)), [1, 1, 1, 2, 3, 3, 3, 4, 5, 5]);
    assert_eq!(index["metadata"]["total_size"], 30);
    assert_eq!(WeightsReader::open(dir.path()).unwrap().names().len(), 10);
}

#[test]
fn hostile_indexes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    shards(dir.path());
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("s.safetensors");
    save_safetensors(&secret, [("s".to_owned(), Tensor::zeros([1], DType::U8).unwrap())], &BTreeMap::new()).unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let first = "model-00001-of-00003.safetensors";
    fs::copy(dir.path().join(first), dir.path().join("copy.safetensors")).unwrap();
    let absolute = secret.to_str().unwrap();
    let cases = [
        ("[]".to_owned(), "index with a weight_map"),
        ("{}".to_owned(), "no weight_map"),
        (r#"{"weight_map":{"a":"x","a":"y"}}"#.to_owned(), "given twice"),
        (r#"{"weight_map":{},"weight_map":{}}"#.to_owned(), "given twice"),
        (r#"{"weight_map":{"a":["x"]}}"#.to_owned(), "malformed"),
        (format!(r#"{{"weight_map":{{"s":{absolute:?}}}}}"#), "not the name of a file"),
        (r#"{"weight_map":{"s":"../s.safetensors"}}"#.to_owned(), "not the name of a file"),
        (r#"{"weight_map":{"s":"sub/s.safetensors"}}"#.to_owned(), "not the name of a file"),
        (r#"{"weight_map":{"s":"sub\\s.safetensors"}}"#.to_owned(), "not the name of a file"),
        (r#"{"weight_map":{"s":".."}}"#.to_owned(), "not the name of a file"),
        (r#"{"weight_map":{"s":""}}"#.to_owned(), "not the name of a file"),
        (r#"{"weight_map":{"s":"./s.safetensors"}}"#.to_owned(), "not the name of a file"),
        (
            r#"{"weight_map":{"s":"gone.safetensors"}}"#.to_owned(),
            "\"gone.safetensors\", which the index names, is missing",
        ),
        (format!(r#"{{"weight_map":{{"s":"{first}"}}}}"#), "places tensor \"s\" here"),
        (format!(r#"{{"weight_map":{{"a":"{first}","b":"copy.safetensors"}}}}"#), "is both in"),
    ];
    for (index, expected) in cases {
        fs::write(dir.path().join(INDEX_FILE), &index).unwrap();
        let error = WeightsReader::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{index}: {error:?} does not say {expected:?}");
    }
}

#[test]
fn absent_things_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let error = WeightsReader::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("found pytorch_model.bin") && error.contains("convert"), "{error}");
    let error = WeightsReader::open(dir.path().join("gone")).unwrap_err().to_string();
    assert!(error.contains("gone"), "{error}");

    let path = dir.path().join("w.safetensors");
    let t = Tensor::zeros([1], DType::F32).unwrap();
    save_safetensors(&path, [("model.layers.0.q_proj.weight".to_owned(), t.clone())], &BTreeMap::new()).unwrap();
    let error = WeightsReader::open(&path).unwrap().get("model.layers.1.q_proj.weight").unwrap_err().to_string();
    assert!(error.contains("the nearest is \"model.layers.0.q_proj.weight\""), "{error}");

    for names in [["a", "a"], ["a", "__metadata__"]] {
        let error = save_safetensors(&path, names.map(|n| (n.to_owned(), t.clone())), &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, WeightsError::BadName { .. }), "{error}");
        let error = save_sharded(dir.path(), names.map(|n| (n.to_owned(), t.clone())), 1).unwrap_err();
        assert!(matches!(error, WeightsError::BadName { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a refused save left files");
    assert!(WeightsReader::open(&path).unwrap().contains("model.layers.0.q_proj.weight"));
}

proptest! {
    /// Nothing that is read panics, and whatever is accepted can be read whole and is accepted, with
    /// the same places, by the reference implementation.
    #[test]
    fn damaged_files_are_refused_or_read(at in 0usize..400, byte: u8, cut in 0usize..400, insert: bool) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"bb":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"c":{"dtype":"U8","shape":[],"data_offsets":[14,15]}}"#;
        let mut bytes = file(header, &[1; 15]);
        let at = at % bytes.len();
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        if cut < 100 { bytes.truncate(bytes.len() - cut) }
        if let Ok(reader) = WeightsReader::from_mmap(map(&bytes), "x") {
            let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            prop_assert_eq!(theirs.len(), reader.names().len());
            for name in reader.names() {
                let tensor = reader.get(name).unwrap();
                let view = theirs.tensor(name).unwrap();
                prop_assert_eq!(view.shape(), tensor.dims());
                let at = reader.meta(name).unwrap().offset;
                prop_assert_eq!(view.data(), &bytes[at..at + view.data().len()]);
            }
        }
    }
}
