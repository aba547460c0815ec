//! Any bytes as a safetensors file: refused, or read whole.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use planish_nn::weights::WeightsReader;

fuzz_target!(|data: &[u8]| {
    let Ok(mut map) = memmap2::MmapMut::map_anon(data.len().max(1)) else { return };
    map[..data.len()].copy_from_slice(data);
    let Ok(map) = map.make_read_only() else { return };
    match WeightsReader::from_mmap(Arc::new(map), "fuzz.safetensors") {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(reader) => {
            for name in reader.names() {
                let meta = reader.meta(name).expect("a listed tensor has an entry");
                let tensor = reader.get(name).expect("a listed tensor can be read");
                assert_eq!(tensor.dims(), meta.shape);
                // Touches every byte of the view.
                tensor.copied().expect("it fits into memory, as the file did");
            }
        }
    }
});
