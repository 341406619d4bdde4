//! A daemon that answers what it was told to and remembers what it was asked.

use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

/// What it says to one kind of request.
#[derive(Clone)]
enum Answer {
    Json(u16, String),
    /// The connection ends without a word.
    Nothing,
    /// The connection stays open without a word.
    Silence,
}

/// One request that was made.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `METHOD PATH`.
    pub(crate) what: String,
    /// The body.
    pub(crate) body: String,
}

impl Asked {
    /// The body as what it stands for.
    pub(crate) fn body<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{}: {e}", self.body))
    }
}

#[derive(Default)]
struct Script {
    answers: HashMap<String, Answer>,
    asked: Vec<Asked>,
}

/// The daemon; it listens until the test ends.
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("meshd.sock")).unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(stream.unwrap(), &shared));
            }
        });
        Self { directory, script }
    }

    /// To `METHOD PATH` it says this.
    pub(crate) fn says(self, what: &str, view: &impl Serialize) -> Self {
        self.on(what, Answer::Json(200, serde_json::to_string(view).unwrap()))
    }

    /// `METHOD PATH` is refused.
    pub(crate) fn refuses(self, what: &str, status: u16, text: &str) -> Self {
        self.on(what, Answer::Json(status, format!("{{\"error\":\"{text}\"}}")))
    }

    /// To `METHOD PATH` it says something that is no JSON.
    pub(crate) fn babbles(self, what: &str) -> Self {
        self.on(what, Answer::Json(200, "<html>\nhello\n".to_owned()))
    }

    /// At `METHOD PATH` it breaks off.
    pub(crate) fn breaks_off(self, what: &str) -> Self {
        self.on(what, Answer::Nothing)
    }

    /// At `METHOD PATH` it hangs.
    pub(crate) fn hangs(self, what: &str) -> Self {
        self.on(what, Answer::Silence)
    }

    fn on(self, what: &str, answer: Answer) -> Self {
        self.script.lock().unwrap().answers.insert(what.to_owned(), answer);
        self
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }

    /// The only request like `METHOD PATH`.
    pub(crate) fn asked_once(&self, what: &str) -> Asked {
        let mut asked = self.asked();
        asked.retain(|asked| asked.what == what);
        assert_eq!(asked.len(), 1, "{what}: {:?}", self.asked());
        asked.remove(0)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("meshd.sock")
    }

    /// `meshctl` with this daemon's socket.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.env("MESH_SOCKET", self.socket()).args(arguments);
        command
    }

    /// `meshctl`, to its end.
    pub(crate) fn meshctl(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }
}

fn serve(mut stream: UnixStream, script: &Mutex<Script>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut length) = (String::new(), 0);
    reader.read_line(&mut line).unwrap();
    let what = line.rsplit_once(' ').map_or(String::new(), |(what, _)| what.to_owned());
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();

    let answer = {
        let mut script = script.lock().unwrap();
        script.asked.push(Asked { what: what.clone(), body });
        script.answers.get(&what).cloned()
    };
    match answer {
        Some(Answer::Json(status, body)) => answer_json(&mut stream, status, &body),
        Some(Answer::Nothing) => {}
        // Until the other side gives up.
        Some(Answer::Silence) => drop(reader.read(&mut [0])),
        None => answer_json(&mut stream, 404, &format!("{{\"error\":\"nobody expected {what}\"}}")),
    }
}

fn answer_json(stream: &mut UnixStream, status: u16, body: &str) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n\r\n"
    );
    // A client that was killed does not read it.
    drop(stream.write_all(format!("{head}{body}").as_bytes()));
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// It was done, without a word on stderr; what it printed.
    pub(crate) fn ok(self) -> String {
        assert!(self.code == Some(0) && self.stderr.is_empty(), "{self:?}");
        self.stdout
    }

    /// It was refused or failed: exit code 1 and one line on stderr, which is returned without `meshctl: `.
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        let line = self.stderr.strip_prefix("meshctl: ").and_then(|line| line.strip_suffix('\n'));
        match line {
            Some(line) if !line.contains('\n') => line.to_owned(),
            _ => panic!("not one line: {self:?}"),
        }
    }
}
