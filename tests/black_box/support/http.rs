//! A client that sends exactly the bytes that it is told to, and reads one answer.

use std::io::{self, BufRead, BufReader, Read, Write};

use super::Json;

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, without chunk marks.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} is not JSON ({error}): {}", self.status, self.text()))
    }

    /// The word under `error` of an error's JSON.
    #[track_caller]
    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error has a word").to_owned()
    }
}

/// Sends `request` as it is and reads one answer.
pub fn exchange(stream: impl Read + Write, request: &[u8]) -> io::Result<Answer> {
    let mut stream = stream;
    stream.write_all(request)?;
    let is_head = request.starts_with(b"HEAD ");
    read_answer(&mut BufReader::new(stream), is_head)
}

/// Reads one answer; `is_head`: it has no body whatever its headers say.
pub fn read_answer(reader: &mut impl BufRead, is_head: bool) -> io::Result<Answer> {
    loop {
        let status = read_status(reader)?;
        let headers = read_headers(reader)?;
        if status == 100 {
            continue;
        }
        let answer = Answer { status, headers, body: Vec::new() };
        let body = if is_head || status == 204 { Vec::new() } else { read_body(reader, &answer)? };
        return Ok(Answer { body, ..answer });
    }
}

fn read_status(reader: &mut impl BufRead) -> io::Result<u16> {
    let line = read_line(reader)?;
    line.strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not a status line: {line:?}")))
}

fn read_headers(reader: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_body(reader: &mut impl BufRead, answer: &Answer) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(reader)?;
            let length = usize::from_str_radix(line.trim(), 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("not a chunk: {line:?}")))?;
            let begin = body.len();
            body.resize(begin + length, 0);
            reader.read_exact(&mut body[begin..])?;
            read_line(reader)?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
    if let Some(length) = answer.header("content-length").and_then(|value| value.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// What comes of a stream until it holds this text.
#[track_caller]
pub fn read_until(stream: &mut impl Read, text: &str) -> Vec<u8> {
    let mut so_far = Vec::new();
    while !String::from_utf8_lossy(&so_far).contains(text) {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).expect("it goes on");
        assert_ne!(length, 0, "it ended: {}", String::from_utf8_lossy(&so_far));
        so_far.extend_from_slice(&part[..length]);
    }
    so_far
}
