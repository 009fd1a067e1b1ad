//! A server for tests of stores that are read over HTTP.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    let (mut status, mut more, mut body) = answers.get(&unsigned(path)).unwrap_or(&missing).clone();
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    if let (200, Some((start, end))) = (status, range) {
        let (start, end): (usize, usize) = (start.parse().ok()?, end.parse().ok()?);
        more += &format!("Content-Range: bytes {start}-{end}/{}\r\n", body.len());
        (status, body) = (206, body[start..=end].to_vec());
    }
    write!(stream, "HTTP/1.1 {status} X\r\n{more}Content-Length: {}\r\n\r\n", body.len()).ok()?;
    if method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

/// A path without what a signature has put into its query.
fn unsigned(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let query: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("X-Amz-")).collect();
    format!("{path}?{}", query.join("&"))
}

/// What happens to one request of an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    /// It is answered.
    None,
    /// Another status, with a reason as S3 writes it.
    Status(u16, &'static str),
    /// Nothing comes.
    Silent,
    /// The connection is reset before an answer.
    Reset,
    /// The connection is reset after so many bytes of the body.
    ResetAfter(usize),
    /// Nothing comes after so many bytes of the body.
    SilentAfter(usize),
    /// The connection is closed after so many bytes of the body.
    ClosedAfter(usize),
    /// The answer says that it has so many bytes, and has them, whatever was asked.
    Shortened(usize),
}

/// A server that has one object at every path, with each request in its trouble, and later ones in the last. What is asked
/// is noted with the range.
pub(super) fn troubled(object: Vec<u8>, headers: &'static str, troubles: Vec<Trouble>) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Asked::default();
    let seen = asked.clone();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().map_while(std::result::Result::ok).enumerate() {
            let trouble = *troubles.get(index).or(troubles.last()).unwrap_or(&Trouble::None);
            // A connection for each request, one after the other.
            let _ = answer_in(trouble, &stream, &object, headers, &seen);
        }
    });
    (url, asked)
}

fn answer_in(
    trouble: Trouble,
    mut stream: &TcpStream,
    object: &[u8],
    headers: &str,
    seen: &Asked,
) -> std::io::Result<()> {
    // Unbuffered and without the last byte: closing a connection with something unread resets it.
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r") && stream.read(&mut byte)? == 1 {
        request.extend(byte);
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let range = request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
    let range = range.and_then(|(start, end)| Some(start.parse::<usize>().ok()?..end.parse::<usize>().ok()? + 1));
    let first = request.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let noted = range.as_ref().map(|range| format!("{}..{}", range.start, range.end));
    seen.lock().expect("no panic").push((first, noted));
    let (status, more) = match &range {
        Some(range) => (206, format!("Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, object.len())),
        None => (200, String::new()),
    };
    let body = &object[range.unwrap_or(0..object.len())];
    let head = |status: u16, more: &str, length: usize| {
        format!("HTTP/1.1 {status} X\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n").into_bytes()
    };
    let whole = head(status, &format!("{headers}{more}"), body.len());
    match trouble {
        Trouble::None => {
            stream.read_exact(&mut byte)?;
            stream.write_all(&[&whole, body].concat())
        }
        Trouble::Status(status, reason) => {
            stream.read_exact(&mut byte)?;
            stream.write_all(&[&head(status, "", reason.len()), reason.as_bytes()].concat())
        }
        Trouble::Silent => {
            std::mem::forget(stream.try_clone()?);
            Ok(())
        }
        Trouble::Reset => Ok(()),
        Trouble::ResetAfter(bytes) => {
            stream.write_all(&[&whole, &body[..bytes]].concat())?;
            // A reset overtakes what the other side hasn't read.
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        }
        Trouble::SilentAfter(bytes) => {
            std::mem::forget(stream.try_clone()?);
            stream.write_all(&[&whole, &body[..bytes]].concat())
        }
        Trouble::ClosedAfter(bytes) => {
            stream.read_exact(&mut byte)?;
            stream.write_all(&[&whole, &body[..bytes]].concat())
        }
        Trouble::Shortened(bytes) => {
            stream.read_exact(&mut byte)?;
            stream.write_all(&[&head(status, &format!("{headers}{more}"), bytes), &body[..bytes]].concat())
        }
    }
}
