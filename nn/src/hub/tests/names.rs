//! Names, what is selected of a repository, and settings.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::super::*;
use super::COMMIT;

#[test]
fn what_is_selected_is_what_is_needed() {
    let repo = RepoId::parse("org/name").unwrap();
    let select = |needs: &Needs, files: &[&str]| {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        needs.select(&repo, &files)
    };
    let both = [
        "config.json",
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "sub/model.safetensors",
        "tokenizer_config.json",
    ];
    assert_eq!(
        select(&Needs::Model, &both).unwrap(),
        [
            "config.json",
            "tokenizer_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
    assert_eq!(select(&Needs::Tokenizer, &both).unwrap(), ["config.json", "tokenizer_config.json"]);
    assert_eq!(select(&Needs::Model, &["adapter_config.json", "adapter_model.safetensors"]).unwrap().len(), 2);
    let ggufs = ["a.Q4_1.gguf", "a.Q8_0.gguf", "config.json"];
    let named = Needs::Gguf(Some("a.Q8_0.gguf".into()));
    assert_eq!(select(&named, &ggufs).unwrap(), ["a.Q8_0.gguf"]);
    let error = select(&Needs::Gguf(None), &ggufs).unwrap_err().to_string();
    assert!(error.contains("a.Q4_1.gguf, a.Q8_0.gguf"), "{error}");
    assert_eq!(select(&Needs::Gguf(None), &ggufs[1..]).unwrap(), ["a.Q8_0.gguf"]);
    assert!(select(&Needs::Gguf(Some("config.json".into())), &ggufs).is_err());
}

#[test]
fn ids_are_checked() {
    for id in [
        "org/name",
        "gpt2",
        "a.b/c_d-E.1",
        "org/name@main",
        "org/name@refs/pr/12",
        "o/n@v1.0-rc",
        &format!("o/n@{COMMIT}"),
    ] {
        let repo = RepoId::parse(id).unwrap();
        assert_eq!(repo.to_string(), id.trim_end_matches("@main"));
        assert_eq!(RepoId::parse(repo.name()).unwrap().with_revision(repo.revision()).unwrap(), repo);
    }
    for id in [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "../a",
        "a/..",
        "a/.b",
        "a b/c",
        "a/b@",
        "a/b@../x",
        "a/b@x/../y",
        "a/b@/x",
        "a/b@x\ny",
        "a--b/c",
        "a/b?x",
        "a/b@x:y",
        "ä/b",
        "C:\\x",
    ] {
        let error = RepoId::parse(id).unwrap_err();
        assert!(matches!(error, HubError::InvalidId { .. }), "{id}");
    }
}

#[test]
fn settings_come_from_the_environment() {
    let home = tempfile::tempdir().unwrap();
    let of = |vars: &[(&str, &str)]| {
        let vars: HashMap<String, String> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        HubConfig::from_vars(|name| vars.get(name).cloned(), Some(home.path().into()))
    };
    assert_eq!(of(&[]).endpoint, "https://huggingface.co");
    assert_eq!(of(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    assert_eq!(of(&[("HF_HOME", "/h")]).cache_dir, Path::new("/h/hub"));
    assert_eq!(of(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "~/c")]).cache_dir, home.path().join("c"));
    assert_eq!(of(&[("XDG_CACHE_HOME", "/x")]).cache_dir, Path::new("/x/huggingface/hub"));
    for (value, offline) in [("1", true), ("true", true), ("ON", true), ("0", false), ("", false)] {
        assert_eq!(of(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
    }
    assert_eq!(of(&[]).token, None);
    fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
    fs::write(home.path().join(".cache/huggingface/token"), "hf_file\n").unwrap();
    assert_eq!(of(&[]).token.as_deref(), Some("hf_file"));
    fs::write(home.path().join("t"), " hf_path ").unwrap();
    assert_eq!(of(&[("HF_TOKEN_PATH", "~/t")]).token.as_deref(), Some("hf_path"));
    let with_token = of(&[("HF_TOKEN", "hf_env")]);
    assert_eq!(with_token.token.as_deref(), Some("hf_env"));
    assert!(!format!("{with_token:?}").contains("hf_env"));
}
