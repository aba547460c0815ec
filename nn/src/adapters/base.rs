//! Which model an adapter was made for, by what its file says.

use std::path::Path;

use super::files::CONFIG_FILE;
use crate::Result;
use crate::pretrained::read_json;

/// `base_model_name_or_path` of a PEFT directory, if its adapter_config.json has one.
///
/// # Errors
/// A file that is missing, or no JSON.
pub fn base_name(dir: &Path) -> Result<Option<String>> {
    let config = read_json(&dir.join(CONFIG_FILE))?;
    let name = config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty());
    Ok(name.map(str::to_owned))
}

/// Whether two names may be of one model. Paths that are both there are compared as what they lead to; else the last
/// part decides, since models are moved, and the hub's are found in its cache.
pub fn is_same_base(a: &str, b: &str) -> bool {
    if let (Ok(a), Ok(b)) = (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        return a == b;
    }
    last_part(a) == last_part(b)
}

/// The last part of a path or hub id; of a snapshot in the hub's cache the repository's name.
fn last_part(name: &str) -> &str {
    let parts = || name.split(['/', '\\']).filter(|part| !part.is_empty());
    let cached = parts().find_map(|part| part.strip_prefix("models--"));
    match cached {
        Some(repository) => repository.rsplit("--").next().unwrap_or(repository),
        None => parts().next_back().unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_model() {
        for (a, b) in [
            ("HuggingFaceTB/SmolLM2-135M", "/data/models/SmolLM2-135M/"),
            ("org/name", "/root/.cache/huggingface/hub/models--org--name/snapshots/0123abcd"),
            ("builtin", "builtin"),
            ("C:\\models\\name", "name"),
        ] {
            assert!(is_same_base(a, b) && is_same_base(b, a), "{a} and {b}");
        }
        assert!(!is_same_base("org/name-135M", "org/name-360M"));
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.to_string_lossy().into_owned()
        };
        // Both are there, under one name: not the same.
        assert!(!is_same_base(&at("one/final"), &at("two/final")));
        assert!(is_same_base(&at("one/final"), &format!("{}/../final", at("one/final"))));
    }
}
