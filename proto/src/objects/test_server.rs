//! A server for tests of stores that are read over HTTP.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a server was asked: method and path, and the token where one came.
pub(super) type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A server that answers each path with a status, headers and a body, and the part of it that is asked for.
pub(super) fn serve(answers: HashMap<String, (u16, String, Vec<u8>)>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Asked::default();
    let seen = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(std::result::Result::ok) {
            let (answers, seen) = (answers.clone(), seen.clone());
            std::thread::spawn(move || while answer(&stream, &answers, &seen).is_some() {});
        }
    });
    (url, asked)
}

fn answer(mut stream: &TcpStream, answers: &HashMap<String, (u16, String, Vec<u8>)>, seen: &Asked) -> Option<()> {
    let mut lines = BufReader::new(stream).lines().map_while(std::result::Result::ok);
    let request = lines.next()?;
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let [method, path, ..] = request.split(' ').collect::<Vec<_>>()[..] else { return None };
    seen.lock().ok()?.push((format!("{method} {path}"), headers.get("authorization").cloned()));
    let missing = (404, String::new(), Vec::new());
    let (mut status, mut more, mut body) = answers.get(path).unwrap_or(&missing).clone();
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    if let (200, Some((start, end))) = (status, range) {
        let (start, end): (usize, usize) = (start.parse().ok()?, end.parse().ok()?);
        more += &format!("Content-Range: bytes {start}-{end}/{}\r\n", body.len());
        (status, body) = (206, body[start..=end].to_vec());
    }
    write!(stream, "HTTP/1.1 {status} X\r\n{more}Content-Length: {}\r\n\r\n", body.len()).ok()?;
    if method == "GET" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}
