//! Any bytes as a GGUF file: refused, or read whole, as llama.cpp's tensors and as transformers'.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use planish_nn::gguf::GgufFile;

fuzz_target!(|data: &[u8]| {
    let Ok(mut map) = memmap2::MmapMut::map_anon(data.len().max(1)) else { return };
    map[..data.len()].copy_from_slice(data);
    let Ok(map) = map.make_read_only() else { return };
    match GgufFile::from_mmap(Arc::new(map), "fuzz.gguf") {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(file) => {
            for tensor in file.tensors() {
                let values = file.tensor(&tensor.name).expect("a listed tensor can be read");
                assert_eq!(values.dims(), tensor.shape);
            }
            for name in file.tensor_names_hf().unwrap_or_default() {
                // The rows may not be those of the heads: an error, but no more.
                let _ = file.tensor_hf(&name);
            }
            let _ = file.hf_config();
        }
    }
});
