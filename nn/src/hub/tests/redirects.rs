//! Redirects, and who gets the token.

use std::fs;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::super::*;
use super::{Server, answer, config, file_answer, get, hex, hub, weights};

#[test]
fn the_token_stays_with_the_hub_when_it_redirects() {
    let cache = tempfile::tempdir().unwrap();
    let content = Arc::new(weights());
    let store = Server::start({
        let content = content.clone();
        move |request| file_answer(request, &content, true)
    });
    let store_url = store.url.clone();
    let server = hub({
        let content = content.clone();
        move |request| {
            let moved = answer(302, "").with("Location", format!("{store_url}/blob?signature=abc"));
            if request.method != "HEAD" {
                return moved;
            }
            let etag = format!("\"{}\"", hex(&Sha256::digest(&*content)));
            moved.with("X-Linked-Etag", etag).with("X-Linked-Size", content.len().to_string())
        }
    });
    let dir = get(&config(cache.path(), &server), "org/name").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), *content);
    assert!(server.seen().iter().all(|r| r.headers.contains_key("authorization")));
    let stored = store.seen();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].path, "/blob?signature=abc");
    assert!(!stored[0].headers.values().any(|v| v.contains("hf_secret")), "the token leaked: {stored:?}");
}

#[test]
fn redirects_on_the_same_host_keep_the_token_and_endless_ones_end() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/api/models/old/name/revision/main" => answer(307, "").with("Location", "/api/models/org/name/revision/main"),
        "/api/models/org/name/revision/main" => answer(307, "").with("Location", "//127.0.0.1:1/"),
        path => answer(302, "").with("Location", path.to_owned()),
    });
    let config = config(cache.path(), &server);
    let error = get(&config, "old/name").unwrap_err();
    assert!(matches!(&error, HubError::Network { url, .. } if url.contains("127.0.0.1:1")), "{error}");
    assert!(server.seen().iter().all(|r| r.headers.contains_key("authorization")));
    let error = get(&config, "x/y").unwrap_err().to_string();
    assert!(error.contains("too many redirects"), "{error}");
}
