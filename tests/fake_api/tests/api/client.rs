//! A client so plain that it shows what is on the wire.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use fake_api::FakeApi;
use serde_json::{Value, json};

/// Longer than anything takes that is to come.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn of(api: &FakeApi) -> Self {
        let stream = TcpStream::connect(api.address()).expect("it listens");
        stream.set_nodelay(true).expect("an option");
        let client = Self {
            reader: BufReader::new(stream),
        };
        client.be_patient_for(PATIENCE);
        client
    }

    pub fn be_patient_for(&self, time: Duration) {
        let stream = self.reader.get_ref();
        stream.set_read_timeout(Some(time)).expect("a timeout");
    }

    pub fn send(&mut self, path: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: fake\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        self.write(head.as_bytes());
        self.write(body.as_bytes());
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let stream = self.reader.get_mut();
        stream.write_all(bytes).expect("the server reads");
    }

    pub fn read_exactly(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = vec![0; bytes];
        self.reader.read_exact(&mut read)?;
        Ok(read)
    }

    /// What comes until the connection ends, or the error it ends with.
    pub fn read_to_end(&mut self) -> (Vec<u8>, io::Result<()>) {
        let mut read = Vec::new();
        let result = self.reader.read_to_end(&mut read);
        (read, result.map(drop))
    }

    pub fn read_head(&mut self) -> io::Result<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.push((name.to_owned(), value.to_owned()));
        }
        Ok(Answer {
            status: status.expect("a status line"),
            headers,
            body: Vec::new(),
        })
    }

    pub fn read(&mut self) -> io::Result<Answer> {
        let mut answer = self.read_head()?;
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a length");
            answer.body = self.read_exactly(length)?;
            return Ok(answer);
        }
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).expect("a chunk's length");
            let chunk = self.read_exactly(length)?;
            answer.body.extend(chunk);
            self.line()?;
            if length == 0 {
                return Ok(answer);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends OpenAI's request, and reads the answer.
    pub fn ask(&mut self, body: &Value) -> Answer {
        self.ask_with(&[], body)
    }

    pub fn ask_with(&mut self, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.send("/v1/embeddings", headers, &body.to_string());
        self.read().expect("an answer")
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&self.body));
        })
    }

    /// `data` as `(index, vector)`, from whichever encoding.
    pub fn vectors(&self) -> Vec<(u64, Vec<f32>)> {
        let json = self.json();
        let data = json["data"].as_array().expect("data");
        data.iter()
            .map(|item| {
                assert_eq!(item["object"], "embedding");
                let index = item["index"].as_u64().expect("an index");
                (index, vector(&item["embedding"]))
            })
            .collect()
    }
}

/// A vector from numbers or base64.
pub fn vector(value: &Value) -> Vec<f32> {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    if let Value::String(text) = value {
        let bytes = BASE64_STANDARD.decode(text).expect("base64");
        return bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().expect("four")))
            .collect();
    }
    serde_json::from_value(value.clone()).expect("numbers")
}

/// A request for these texts, with short vectors.
pub fn texts(texts: &[&str]) -> Value {
    json!({ "model": "text-embedding-3-small", "input": texts, "dimensions": 4 })
}
