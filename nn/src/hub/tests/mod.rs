use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::*;
use crate::weights::save_safetensors;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

/// What a server saw of a request, in lower case but for values.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    cut: usize,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer { status, headers: vec![], body: body.into(), cut: usize::MAX }
}

impl Answer {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Handler = dyn Fn(&Seen) -> Answer + Send + Sync;

/// An HTTP server on this machine: one answer a connection.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = std::thread::spawn({
            let (seen, stop) = (seen.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let (handler, seen) = (handler.clone(), seen.clone());
                    std::thread::spawn(move || serve(stream.unwrap(), &*handler, &seen));
                }
            }
        });
        Server { url, seen, stop, thread: Some(thread) }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(self.url.trim_start_matches("http://")).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: TcpStream, handler: &Handler, seen: &Mutex<Vec<Seen>>) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    let Ok(1..) = reader.read_line(&mut line) else { return };
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Seen { method, path, headers };
    seen.lock().unwrap().push(request.clone());
    let answer = handler(&request);
    let mut head =
        format!("HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let body = if request.method == "HEAD" { &[] } else { &answer.body[..answer.cut.min(answer.body.len())] };
    let mut stream = &stream;
    // The client may have hung up: that is its right.
    let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers for a file, small or in the large files' store, with ranges.
fn file_answer(request: &Seen, content: &[u8], large: bool) -> Answer {
    let etag = match large {
        true => hex(&Sha256::digest(content)),
        false => hex(&Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize()),
    };
    let start = request.headers.get("range").map(|r| r["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    let (status, body) = match start {
        Some(start) => (206, &content[start..]),
        None => (200, content),
    };
    let mut answer = answer(status, body).with("ETag", format!("\"{etag}\"")).with("X-Repo-Commit", COMMIT);
    if let Some(start) = start {
        answer = answer.with("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len()));
    }
    answer
}

fn weights() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let tensor = planish_tensor::Tensor::from_vec((0..50_000).map(|i| i as f32).collect(), [50_000]).unwrap();
    save_safetensors(dir.path().join("w"), [("w".to_owned(), tensor)], &Default::default()).unwrap();
    fs::read(dir.path().join("w")).unwrap()
}

const FILES: [(&str, &str); 4] = [
    ("config.json", "{\"model_type\":\"llama\"}"),
    ("tokenizer.json", "{}"),
    ("chat_template.jinja", "{{ messages }}"),
    ("README.md", "not needed"),
];

fn info(files: &[&str]) -> Answer {
    let siblings: Vec<_> = files.iter().map(|f| serde_json::json!({ "rfilename": f })).collect();
    answer(200, serde_json::json!({ "sha": COMMIT, "siblings": siblings, "private": false }).to_string())
}

/// A hub with one model, `org/name`, whose weights go through `large`.
fn hub(large: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        let path = request.path.as_str();
        if path.starts_with("/api/models/org/name/revision/") {
            return info(&[
                "config.json",
                "tokenizer.json",
                "chat_template.jinja",
                "README.md",
                "model.safetensors",
                "pytorch_model.bin",
            ]);
        }
        let Some(file) = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) else {
            return answer(404, "").with("X-Error-Code", "RepoNotFound");
        };
        match FILES.iter().find(|(name, _)| *name == file) {
            Some((_, content)) => file_answer(request, content.as_bytes(), false),
            None if file == "model.safetensors" => large(request),
            None => answer(404, "").with("X-Error-Code", "EntryNotFound"),
        }
    })
}

fn config(cache: &Path, server: &Server) -> HubConfig {
    let mut config = HubConfig::from_vars(|_| None, Some(cache.into()));
    assert_eq!(config.cache_dir, cache.join(".cache/huggingface/hub"));
    config.cache_dir = cache.into();
    config.endpoint = server.url.clone();
    config.token = Some("hf_secret".into());
    config.retry_pause = Duration::from_millis(1);
    // Generous: tests share a machine with builds.
    config.read_timeout = Duration::from_secs(60);
    config.proxy = false;
    config
}

fn get(config: &HubConfig, id: &str) -> Result<PathBuf> {
    Hub::new(config.clone()).unwrap().snapshot(&RepoId::parse(id).unwrap(), &Needs::Model, &mut |_| ())
}

fn incomplete(cache: &Path) -> Vec<PathBuf> {
    let blobs = fs::read_dir(cache.join("models--org--name/blobs")).unwrap();
    blobs.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|x| x == "incomplete")).collect()
}

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
fn refusals_say_what_to_do() {
    let cases = [
        (answer(401, "").with("X-Error-Code", "GatedRepo"), "accept its terms"),
        (answer(403, "").with("X-Error-Code", "GatedRepo"), "accept its terms"),
        (answer(404, "").with("X-Error-Code", "RepoNotFound"), "check the spelling"),
        (answer(404, "").with("X-Error-Code", "RevisionNotFound"), "no revision of that name"),
        (answer(401, ""), "HF_TOKEN is missing, wrong or expired"),
        (answer(403, ""), "HF_TOKEN is missing, wrong or expired"),
        (answer(418, ""), "HTTP status 418"),
        (answer(503, ""), "HTTP status 503"),
        (answer(200, "<html>"), "is HF_ENDPOINT a Hugging Face hub?"),
        (answer(200, "{\"sha\":\"../../x\",\"siblings\":[]}"), "40 hexadecimal digits"),
        (answer(302, ""), "redirect to nowhere"),
        (answer(302, "").with("Location", "file:///etc/passwd"), "not a URL"),
        (info(&["config.json", "../../.bashrc"]), "\"../../.bashrc\", which is no path inside"),
        (info(&["config.json", "/etc/passwd"]), "no path inside"),
        (info(&["config.json", "a\\b"]), "no path inside"),
        (
            info(&["config.json", "pytorch_model.bin", "x.gguf"]),
            "has no safetensors weights; it has pytorch_model.bin, x.gguf",
        ),
        (info(&[]), "it has no weights"),
    ];
    for (refusal, expected) in cases {
        let cache = tempfile::tempdir().unwrap();
        let refusal = Mutex::new(refusal);
        let server = Server::start(move |_| {
            let refusal = refusal.lock().unwrap();
            Answer {
                status: refusal.status,
                headers: refusal.headers.clone(),
                body: refusal.body.clone(),
                cut: usize::MAX,
            }
        });
        let error =
            get(&HubConfig { retries: 1, ..config(cache.path(), &server) }, "org/name@x").unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "{expected}: something was written");
    }
    // Without a token, a model that is not there looks like a private one.
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| answer(401, ""));
    let error = get(&HubConfig { token: None, ..config(cache.path(), &server) }, "org/name").unwrap_err().to_string();
    assert!(error.contains("for a private model set HF_TOKEN"), "{error}");
}

#[test]
fn hostile_file_answers_are_refused() {
    let etag = |etag: &'static str| move |_: &Seen| answer(200, "x").with("ETag", etag);
    let refused = |server: Server, expected: &str| {
        let cache = tempfile::tempdir().unwrap();
        let error =
            get(&HubConfig { retries: 0, ..config(cache.path(), &server) }, "org/name").unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    refused(hub(etag("\"../../../evil\"")), "usable ETag");
    refused(hub(etag("\"\"")), "usable ETag");
    refused(hub(|_| answer(200, "x")), "usable ETag");
    refused(hub(|_| answer(200, "x").with("ETag", "\"a\"").with("X-Repo-Commit", OTHER)), "another commit");
    refused(hub(|_| answer(404, "")), "has no file \"model.safetensors\"");
    // More than announced.
    refused(
        hub(|_| answer(200, vec![7; 100]).with("X-Linked-Etag", "\"abc\"").with("X-Linked-Size", "10")),
        "received 100 bytes of 10",
    );
}

#[test]
fn unreachable_and_silent_servers_are_told_apart() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(400));
        answer(200, "")
    });
    let mut config = config(cache.path(), &server);
    config.read_timeout = Duration::from_millis(50);
    config.retries = 0;
    let error = get(&config, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Timeout { .. }), "{error}");
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    config.endpoint = format!("http://{free}");
    let error = get(&config, "org/name").unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    config.endpoint = "huggingface.co".into();
    assert!(matches!(Hub::new(config), Err(HubError::BadEndpoint { .. })));
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
