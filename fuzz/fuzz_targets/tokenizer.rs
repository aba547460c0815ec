//! tokenizer.json and, behind a zero byte, tokenizer_config.json: refused, or a tokenizer that encodes and
//! decodes, and that is the same after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use planish_nn::tokenizer::Tokenizer;

fuzz_target!(|data: &[u8]| {
    planish_fuzz::tolerate_panics_in(&["tokenizers", "spm_precompiled", "daachorse"]);
    let (json, config) = match data.iter().position(|b| *b == 0) {
        Some(at) => (&data[..at], Some(&data[at + 1..])),
        None => (data, None),
    };
    let tokenizer = match Tokenizer::from_json_bytes(json, config, None) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for text in ["", "Hello, world! 12345 a\u{301}\n\n", "<s></s><|endoftext|> <unk>", "\u{10FFFD} 日本"] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
            let _ = tokenizer.decode(&ids, false);
            let _ = tokenizer.decode(&ids, true);
            let mut decoder = tokenizer.stream_decoder();
            for id in ids {
                let _ = decoder.push(id);
            }
        }
        let _ = tokenizer.encode_ordinary(text);
    }
    let _ = tokenizer.template_for(false);
});
