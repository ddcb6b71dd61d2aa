//! A receiver of callbacks. CALLBACK_KEY=whsec_… cargo run

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::{env, fs, process, thread};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use standardwebhooks::Webhook;
use tiny_http::{Method, Request, Response, Server};

/// In it, <id> is a callback as it came, and <id>.done says that it is handled.
const FOLDER: &str = "callbacks";
/// A result of 8 MiB is up to three times as long when it is encoded.
const MAX_BODY: u64 = 32 << 20;
/// whsec_ and 24 bytes: an empty key would verify what anybody signs.
const MIN_KEY: usize = 38;

fn verb(status: &str) -> Option<&'static str> {
    match status {
        "COMPLETE" => Some("is done"),
        "FAILED" => Some("has failed"),
        "TIMEOUT" => Some("took too long"),
        _ => None,
    }
}

/// Where your own work goes. After a crash it can run again for the same task.
fn finish(id: &str, verb: &str, pairs: &[(String, String)]) -> io::Result<()> {
    let mut out = format!("task {id} {verb}\n");
    for (name, value) in pairs {
        out += &format!("{name}={value}\n");
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(out.as_bytes())?;
    stdout.flush()
}

fn is_task_id(id: &str) -> bool {
    id.len() == 36 && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

/// Stores a callback, on disk before it returns; whether it is the first with its ID.
fn keep(id: &str, status: &str, body: &[u8]) -> io::Result<bool> {
    // Every thread has its own: two callbacks with one ID may come at once.
    let tmp = Path::new(FOLDER).join(format!(".tmp-{}-{:?}", process::id(), thread::current().id()));
    let mut file = fs::File::create(&tmp)?;
    file.write_all(status.as_bytes())?;
    file.write_all(b"\n")?;
    file.write_all(body)?;
    file.sync_all()?;
    let linked = fs::hard_link(&tmp, Path::new(FOLDER).join(id)); // fails if it is there
    fs::remove_file(&tmp)?;
    match linked {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(err),
    }
}

/// Finishes a stored task, unless that has been done.
fn handle(id: &str) -> io::Result<()> {
    let done = Path::new(FOLDER).join(format!("{id}.done"));
    if done.exists() {
        return Ok(());
    }
    let record = fs::read(Path::new(FOLDER).join(id))?;
    let end = record.iter().position(|&c| c == b'\n').unwrap_or(record.len());
    let status = String::from_utf8_lossy(&record[..end]);
    let body = record.get(end + 1..).unwrap_or_default();
    let pairs: Vec<_> = form_urlencoded::parse(body).into_owned().collect();
    finish(id, verb(&status).unwrap_or("is unknown"), &pairs)?;
    fs::File::create(done).map(drop)
}

fn receive(mut request: Request, hook: &Webhook) -> io::Result<()> {
    if *request.method() != Method::Post {
        return request.respond(Response::empty(405));
    }
    let mut body = Vec::new();
    request.as_reader().take(MAX_BODY + 1).read_to_end(&mut body)?;
    if body.len() as u64 > MAX_BODY {
        return request.respond(Response::empty(413));
    }
    let mut headers = HeaderMap::new();
    for header in request.headers() {
        let name = HeaderName::from_bytes(header.field.as_str().as_str().as_bytes());
        let value = HeaderValue::from_str(header.value.as_str());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    // The signature and its time.
    if hook.verify(&body, &headers).is_err() {
        return request.respond(Response::empty(401));
    }
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let (id, status) = (header("webhook-id"), header("x-beam-task-status"));
    if !is_task_id(id) || verb(status).is_none() {
        return request.respond(Response::empty(400));
    }
    match keep(id, status, &body) {
        Ok(first) => {
            request.respond(Response::empty(204))?; // a repeat too: we have it
            if first { handle(id) } else { Ok(()) }
        }
        Err(err) => {
            eprintln!("storing {id}: {err}");
            request.respond(Response::empty(500)) // it comes again
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let key = env::var("CALLBACK_KEY")?;
    if key.len() < MIN_KEY {
        return Err("CALLBACK_KEY is not a whsec_ key".into());
    }
    let hook = Webhook::new(&key)?;
    fs::create_dir_all(FOLDER)?;
    for entry in fs::read_dir(FOLDER)? {
        // What a crash left.
        if let Some(id) = entry?.file_name().to_str().filter(|name| is_task_id(name)) {
            handle(id)?;
        }
    }
    let port = env::var("PORT").unwrap_or_else(|_| "9000".into());
    let (server, hook) = (Arc::new(Server::http(format!("127.0.0.1:{port}"))?), Arc::new(hook));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (server, hook) = (server.clone(), hook.clone());
            thread::spawn(move || {
                while let Ok(request) = server.recv() {
                    if let Err(err) = receive(request, &hook) {
                        eprintln!("receiving: {err}");
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}
