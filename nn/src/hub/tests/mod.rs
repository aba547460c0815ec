//! A hub on this machine, and downloads from it.

mod download;
mod names;
mod redirects;
mod refusals;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
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
