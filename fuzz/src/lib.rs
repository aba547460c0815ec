//! What the fuzz targets share.

use std::panic;
use std::sync::Once;

/// Lets panics in the named dependencies pass: the program catches them and makes them an error, while
/// libFuzzer would count each as a find. A panic anywhere else still ends the process, caught or not.
pub fn tolerate_panics_in(crates: &'static [&'static str]) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let abort = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let file = info.location().map_or("", |at| at.file());
            if !crates.iter().any(|name| file.contains(&format!("/{name}-"))) {
                abort(info);
            }
        }));
    });
}

/// The model inside the program: a real tokenizer, small enough for many runs a second.
pub fn tokenizer(template: Option<&str>) -> planish_nn::tokenizer::Tokenizer {
    let file = |name| planish_train::builtin::file(name).expect("the program holds its own model");
    let (json, config) = (file("tokenizer.json"), file("tokenizer_config.json"));
    planish_nn::tokenizer::Tokenizer::from_json_bytes(json, Some(config), template).expect("it is valid")
}
