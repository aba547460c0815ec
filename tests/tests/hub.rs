//! Models from a hub, from outside: a server on this machine stands for it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use planish_tests::program::{Done, command};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a request asked for, and from which byte on.
type Log = Arc<Mutex<Vec<(String, u64)>>>;

/// A hub that holds the builtin model as `org/name`, at the revisions `main` and `v1`. The first connection
/// for the weights is cut after `cut` bytes; with `lie`, the weights are not what their hash says.
struct Hub {
    url: String,
    log: Log,
}

impl Hub {
    fn start(cut: usize, lie: bool) -> Hub {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/builtin");
        let names =
            ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"];
        let files: HashMap<&str, Vec<u8>> = names.map(|name| (name, fs::read(dir.join(name)).unwrap())).into();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Log = Arc::default();
        let seen = log.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut cuts = 1;
            for stream in listener.incoming().map_while(Result::ok) {
                serve(&stream, &files, &seen, &mut cuts, cut, lie);
            }
        });
        Hub { url, log }
    }

    /// `planish generate` with this hub and the cache `home`.
    fn generate(&self, home: &Path, variables: &[(&str, &str)], more: &[&str]) -> Done {
        let mut command = command();
        command.args(["generate", "--model", "org/name", "--prompt", "Hi", "--max-new-tokens", "2", "--threads", "1"]);
        command.args(more).env("HF_ENDPOINT", &self.url).env("HF_HOME", home).envs(variables.iter().copied());
        for other in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"]
        {
            if variables.iter().all(|(name, _)| *name != other) {
                command.env_remove(other);
            }
        }
        let output = command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1").output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn requests(&self) -> Vec<(String, u64)> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, files: &HashMap<&str, Vec<u8>>, log: &Log, cuts: &mut u32, cut: usize, lie: bool) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(1..) if line.trim().is_empty() => break,
            Ok(1..) => lines.push(line.trim().to_owned()),
            _ => return,
        }
    }
    let (method, path) = lines[0].split_once(' ').unwrap();
    let path = path.split(' ').next().unwrap();
    let range =
        lines.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    log.lock().unwrap().push((format!("{method} {path}"), start as u64));

    let (mut status, mut head, mut body) = ("404 Not Found", String::new(), Vec::new());
    let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    if let Some(revision) = path.strip_prefix("/api/models/org/name/revision/") {
        if ["main", "v1"].contains(&revision) {
            status = "200 OK";
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes();
        } else {
            head = "x-error-code: RevisionNotFound\r\n".into();
        }
    } else if let Some((name, content)) = file.and_then(|file| files.get_key_value(file)) {
        let hash: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
        head = format!("etag: \"{hash}\"\r\nx-repo-commit: {COMMIT}\r\n");
        body = content[start..].to_vec();
        if lie && *name == "model.safetensors" {
            *body.last_mut().unwrap() ^= 1;
        }
        status = "200 OK";
        if start > 0 {
            status = "206 Partial Content";
            head += &format!("content-range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
        }
    } else {
        head = "x-error-code: RepoNotFound\r\n".into();
    }
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{head}\r\n", body.len());
    if method == "HEAD" {
        body.clear();
    } else if *cuts > 0 && body.len() > cut {
        *cuts -= 1;
        body.truncate(cut);
    }
    let mut to = stream;
    // The program may have hung up: that is its right.
    let _ = to.write_all(head.as_bytes()).and_then(|()| to.write_all(&body));
}

fn assert_refuses(done: &Done, words: &str) {
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stdout.is_empty() && done.stderr.trim_end().lines().count() == 1, "{done:?}");
    assert!(done.stderr.starts_with("error: ") && done.stderr.contains(words), "expected {words}: {done:?}");
}

#[test]
fn a_download_that_is_cut_goes_on_and_is_needed_once() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(300_000, false);
    assert_refuses(&hub.generate(home.path(), &[("HF_HUB_OFFLINE", "1")], &[]), "org/name");
    assert_eq!(hub.requests(), [], "offline is offline");

    let done = hub.generate(home.path(), &[], &[]);
    assert_eq!(done.code, 0, "{done:?}");
    let weights = format!("GET /org/name/resolve/{COMMIT}/model.safetensors");
    let from: Vec<u64> = hub.requests().iter().filter(|(what, _)| *what == weights).map(|(_, from)| *from).collect();
    assert_eq!(from, [0, 300_000]);

    // From the cache, without a word to the hub.
    let asked = hub.requests().len();
    let again = hub.generate(home.path(), &[("HF_HUB_OFFLINE", "1")], &[]);
    assert_eq!((again.code, &again.stdout), (0, &done.stdout), "{again:?}");
    assert_eq!(hub.generate(home.path(), &[], &[]).code, 0);
    assert_eq!(hub.requests().len(), asked);

    // A revision by its name and by its commit; one that does not exist.
    assert_eq!(hub.generate(home.path(), &[], &["--model-revision", "v1"]).code, 0);
    let downloads = hub.requests().iter().filter(|(what, _)| what.starts_with("GET /org")).count();
    assert_eq!(hub.generate(home.path(), &[], &["--model-revision", COMMIT]).code, 0);
    assert_eq!(hub.requests().iter().filter(|(what, _)| what.starts_with("GET /org")).count(), downloads);
    assert_refuses(&hub.generate(home.path(), &[], &["--model-revision", "v9"]), "v9");
}

#[test]
fn what_is_not_what_it_should_be_is_refused_and_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(usize::MAX, true);
    let done = hub.generate(home.path(), &[], &[]);
    assert_refuses(&done, "model.safetensors");
    assert!(done.stderr.contains("hash"), "{done:?}");
    let blobs = fs::read_dir(home.path().join("hub/models--org--name/blobs")).unwrap();
    assert!(blobs.flatten().all(|blob| blob.metadata().unwrap().len() < 1_000_000), "the weights were removed");
    assert_refuses(&hub.generate(home.path(), &[("HF_ENDPOINT", "nonsense")], &[]), "nonsense");
}
