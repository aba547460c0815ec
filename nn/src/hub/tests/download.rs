//! Downloads: the layout of the cache, resumption, contents, revisions.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::super::*;
use super::{COMMIT, FILES, OTHER, Seen, answer, config, file_answer, get, hex, hub, incomplete, weights};

#[test]
fn a_model_is_downloaded_once_into_the_layout_of_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub({
        let content = content.clone();
        move |request| file_answer(request, &content, true)
    });
    let config = config(cache.path(), &server);
    let mut reports = Vec::new();
    let repo = RepoId::parse("org/name").unwrap();
    let hub = Hub::new(config.clone()).unwrap();
    assert_eq!(hub.cached(&repo, &Needs::Model), None);
    let dir = hub.snapshot(&repo, &Needs::Model, &mut |p| reports.push((p.done, p.total))).unwrap();

    let root = cache.path().join("models--org--name");
    assert_eq!(dir, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), content);
    let blob = format!("../../blobs/{}", hex(&Sha256::digest(&content)));
    #[cfg(unix)]
    assert_eq!(fs::read_link(dir.join("model.safetensors")).unwrap(), Path::new(&blob));
    // git hash-object of "{}"
    assert!(root.join("blobs/9e26dfeeb6e641a33dae4961196235bdb965b21b").is_file());
    assert!(incomplete(cache.path()).is_empty());

    assert!(reports.is_sorted() && reports.len() >= 4);
    let total = content.len() as u64 + FILES[..3].iter().map(|(_, c)| c.len() as u64).sum::<u64>();
    assert_eq!(*reports.last().unwrap(), (total, total));

    let asked = server.seen();
    assert!(asked.iter().all(|r| r.headers.get("authorization").is_some_and(|t| t == "Bearer hf_secret")));
    // Again, offline, and by the commit itself: nothing is asked.
    assert_eq!(get(&config, "org/name").unwrap(), dir);
    assert_eq!(get(&HubConfig { offline: true, ..config.clone() }, "org/name").unwrap(), dir);
    assert_eq!(get(&config, &format!("org/name@{COMMIT}")).unwrap(), dir);
    assert_eq!(server.seen().len(), asked.len());
    // A refresh asks what main is, and for no contents.
    assert_eq!(get(&HubConfig { refresh: true, ..config.clone() }, "org/name").unwrap(), dir);
    assert!(server.seen()[asked.len()..].iter().all(|r| r.method == "HEAD" || r.path.starts_with("/api/")));
    // A lost file is fetched again.
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    assert_eq!(get(&config, "org/name").unwrap(), dir);
    assert!(dir.join("model.safetensors").exists());
}

#[test]
fn cut_connections_are_resumed() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub({
        let content = content.clone();
        let gets = AtomicUsize::new(0);
        move |request| {
            let mut answer = file_answer(request, &content, true);
            if request.method == "GET" && gets.fetch_add(1, Ordering::SeqCst) < 3 {
                answer.cut = 60_000;
            }
            answer
        }
    });
    let config = config(cache.path(), &server);
    // A killed process left a start.
    let partial = cache.path().join(format!("models--org--name/blobs/{}.incomplete", hex(&Sha256::digest(&content))));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &content[..1000]).unwrap();
    let dir = get(&config, "org/name").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), content);
    let gets: Vec<_> =
        server.seen().into_iter().filter(|r| r.method == "GET" && r.path.ends_with("model.safetensors")).collect();
    let ranges: Vec<_> = gets.iter().map(|r| r.headers["range"].as_str()).collect();
    assert_eq!(ranges, ["bytes=1000-", "bytes=61000-", "bytes=121000-", "bytes=181000-"]);
}

#[test]
fn a_server_without_ranges_or_with_wrong_ones_is_asked_from_the_beginning() {
    for wrong in [false, true] {
        let cache = tempfile::tempdir().unwrap();
        let content = weights();
        let server = hub({
            let content = content.clone();
            move |request| match request.headers.contains_key("range") {
                true if wrong => answer(416, ""),
                _ => file_answer(&Seen { headers: HashMap::new(), ..request.clone() }, &content, true),
            }
        });
        let partial =
            cache.path().join(format!("models--org--name/blobs/{}.incomplete", hex(&Sha256::digest(&content))));
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        fs::write(&partial, b"stale").unwrap();
        let dir = get(&config(cache.path(), &server), "org/name").unwrap();
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), content);
    }
}

#[test]
fn a_connection_that_never_gets_on_is_given_up_and_kept() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub({
        let content = content.clone();
        move |request| {
            let mut answer = file_answer(request, &content, true);
            answer.cut = if request.headers.contains_key("range") { 0 } else { 70_000 };
            answer
        }
    });
    let mut config = config(cache.path(), &server);
    config.retries = 2;
    let error = get(&config, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    let kept = incomplete(cache.path());
    assert_eq!(fs::metadata(&kept[0]).unwrap().len(), 70_000);
    assert_eq!(server.seen().iter().filter(|r| r.headers.contains_key("range")).count(), 3);
    assert!(!cache.path().join("models--org--name/refs").exists());
}

#[test]
fn wrong_contents_are_refused_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub(move |request| {
        let mut answer = file_answer(request, &content, true);
        answer.body[100_000] ^= 1;
        answer
    });
    let error = get(&config(cache.path(), &server), "org/name").unwrap_err();
    assert!(matches!(&error, HubError::WrongHash { .. }), "{error}");
    assert!(incomplete(cache.path()).is_empty());
    assert!(!cache.path().join(format!("models--org--name/snapshots/{COMMIT}/model.safetensors")).exists());
}

#[test]
fn revisions_are_asked_for_and_remembered_by_name() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub(move |request| file_answer(request, &content, true));
    let config = config(cache.path(), &server);
    let dir = get(&config, "org/name@refs/pr/1").unwrap();
    assert_eq!(server.seen()[0].path, "/api/models/org/name/revision/refs%2Fpr%2F1");
    let ref_file = cache.path().join("models--org--name/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(ref_file).unwrap(), COMMIT);
    let asked = server.seen().len();
    assert_eq!(get(&config, "org/name@refs/pr/1").unwrap(), dir);
    assert_eq!(server.seen().len(), asked);
    // Another revision is not in the cache, even though this commit is.
    let offline = HubConfig { offline: true, ..config };
    assert!(matches!(get(&offline, "org/name@v2"), Err(HubError::Offline { .. })));
    assert!(matches!(get(&offline, &format!("org/name@{OTHER}")), Err(HubError::Offline { .. })));
}

#[test]
fn two_downloads_of_a_model_fetch_it_once() {
    let cache = tempfile::tempdir().unwrap();
    let content = weights();
    let server = hub(move |request| {
        if request.method == "GET" {
            std::thread::sleep(Duration::from_millis(100));
        }
        file_answer(request, &content, true)
    });
    let config = config(cache.path(), &server);
    let both = [(); 2].map(|()| {
        let config = config.clone();
        std::thread::spawn(move || get(&config, "org/name").unwrap())
    });
    let dirs = both.map(|thread| thread.join().unwrap());
    assert_eq!(dirs[0], dirs[1]);
    let gets = server.seen().iter().filter(|r| r.method == "GET" && r.path.ends_with("model.safetensors")).count();
    assert_eq!(gets, 1);
}
