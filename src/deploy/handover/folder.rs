//! The folder that a daemon and a helper share for one deployment.
//!
//! ```text
//! RUNTIME/handover/DEPLOYMENT/   0700
//!     job       what the helper is told; whoever renames it first has it: the helper, or the daemon that withdraws it
//!     held      locked by the helper for as long as it lives
//!     log       what it says, one JSON object a line
//!     answer    what came of it, there once it is whole
//! ```
//!
//! The kernel gives the lock back when the helper dies, however that happens. So nobody has to ask Docker whether it is
//! still there, and a helper that comes late, after its job was withdrawn, does nothing.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::job::{Answer, Formatted, Job, Line, parse};
use crate::model::DeploymentId;
use crate::secrets::runtime::{PRIVATE_FILE, PRIVATE_FOLDER, private_folder};
use crate::store::HelperLine;

/// Below the runtime folder.
const FOLDER: &str = "handover";
const JOB: &str = "job";
const HELD: &str = "held";
const LOG: &str = "log";
const ANSWER: &str = "answer";
/// How much of a helper's log is read at once.
const READ_BYTES: u64 = 256 << 10;

/// The folder of one deployment.
#[derive(Clone, Debug)]
pub(super) struct JobFolder {
    path: PathBuf,
}

/// Held by a helper for as long as it lives.
#[derive(Debug)]
pub(super) struct Held {
    _file: File,
}

impl JobFolder {
    pub fn of(runtime: &Path, id: DeploymentId) -> JobFolder {
        JobFolder::at(&runtime.join(FOLDER).join(id.to_string()))
    }

    pub fn at(path: &Path) -> JobFolder {
        JobFolder { path: path.to_owned() }
    }

    /// The names of all that there are.
    pub fn names(runtime: &Path) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(runtime.join(FOLDER)) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    // ---- The daemon's side ----

    /// Makes it, with a job in it.
    pub fn create(&self, job: Job) -> Result<(), String> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        private_folder(parent).map_err(|error| error.message)?;
        let made = remove(&self.path).and_then(|()| DirBuilder::new().mode(PRIVATE_FOLDER).create(&self.path));
        made.map_err(|error| self.cannot("make", &error))?;
        self.write(JOB, &Formatted::new(job))
    }

    /// Takes the job away, unless a helper has it; whether no helper will ever have it.
    pub fn withdraw(&self) -> bool {
        std::fs::rename(self.path.join(JOB), self.path.join("withdrawn")).is_ok()
    }

    /// Whether a helper has the job and lives.
    pub fn is_held(&self) -> bool {
        let Ok(file) = File::open(self.path.join(HELD)) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Whether no helper has taken the job so far.
    pub fn is_untaken(&self) -> bool {
        self.path.join(JOB).exists()
    }

    /// What came of it; none before that is known. An answer that cannot be read is an error.
    pub fn answer(&self) -> Option<Result<Answer, String>> {
        match std::fs::read(self.path.join(ANSWER)) {
            Ok(text) => Some(parse(&text)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(Err(error.to_string())),
        }
    }

    /// Whole lines of the log from this byte on, some of them where there are many, and the byte that they end at.
    pub fn lines(&self, from: u64) -> (Vec<HelperLine>, u64) {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.path.join(LOG))?;
            file.seek(SeekFrom::Start(from))?;
            let mut text = Vec::new();
            file.take(READ_BYTES).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_default();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines = text[..whole].split(|byte| *byte == b'\n').filter_map(|line| {
            let line: Line = serde_json::from_slice(line).ok()?;
            Some(line.into())
        });
        (lines.collect(), from + whole as u64)
    }

    /// Removes it with all that lies in it.
    pub fn remove(&self) -> Result<(), String> {
        remove(&self.path).map_err(|error| self.cannot("remove", &error))
    }

    // ---- The helper's side ----

    /// Takes the job; nobody else finds it any more, nor what it holds in plain text.
    pub fn take(&self) -> Result<(Job, Held), String> {
        let open =
            OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE_FILE).open(self.path.join(HELD));
        let file = open.map_err(|error| self.cannot("open", &error))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| self.cannot("lock", &error.into()))?;
        let taken = self.path.join("taken");
        std::fs::rename(self.path.join(JOB), &taken)
            .map_err(|error| format!("there is no job in {}, or somebody else has it: {error}", self.path.display()))?;
        let text = std::fs::read(&taken).and_then(|text| std::fs::remove_file(&taken).map(|()| text));
        let text = text.map_err(|error| self.cannot("read", &error))?;
        let job = parse(&text).map_err(|why| format!("the job in {}: {why}", self.path.display()))?;
        Ok((job, Held { _file: file }))
    }

    /// The log, to be written to.
    pub fn log(&self) -> Result<File, String> {
        let opened = OpenOptions::new().append(true).create(true).mode(PRIVATE_FILE).open(self.path.join(LOG));
        opened.map_err(|error| self.cannot("write", &error))
    }

    /// Says what came of it.
    pub fn say(&self, answer: Answer) -> Result<(), String> {
        self.write(ANSWER, &Formatted::new(answer))
    }

    /// Writes a file that is there once it is whole.
    fn write(&self, name: &str, content: &impl Serialize) -> Result<(), String> {
        let unfinished = self.path.join(format!("{name}.new"));
        let written = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(PRIVATE_FILE).open(&unfinished)?;
            file.write_all(&serde_json::to_vec(content)?)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, self.path.join(name))
        };
        written().map_err(|error| self.cannot("write", &error))
    }

    fn cannot(&self, what: &str, error: &std::io::Error) -> String {
        format!("cannot {what} {}: {error}", self.path.display())
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use jiff::Timestamp;

    use super::super::job::tests::{brought, job};
    use super::*;
    use crate::model::LogLevel;

    fn given() -> (tempfile::TempDir, JobFolder) {
        let runtime = tempfile::tempdir().unwrap();
        let folder = JobFolder::of(runtime.path(), 7);
        folder.create(job(runtime.path())).unwrap();
        (runtime, folder)
    }

    #[test]
    fn a_job_is_private_and_gone_once_it_is_taken() {
        let (runtime, folder) = given();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&folder.path().join(JOB))), (0o700, 0o600));
        assert_eq!(JobFolder::names(runtime.path()), ["7"]);
        let (job, held) = folder.take().unwrap();
        assert!(job.heals_first && folder.is_held() && !folder.is_untaken());
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [HELD], "nothing in plain text is left");
        assert!(!folder.withdraw());
        drop(held);
        assert!(!folder.is_held() && folder.take().is_err());
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(JobFolder::names(runtime.path()).is_empty());
    }

    #[test]
    fn a_helper_that_comes_late_has_no_job() {
        let (_runtime, folder) = given();
        assert!(folder.is_untaken() && !folder.is_held() && folder.withdraw());
        let error = folder.take().err().unwrap();
        assert!(error.contains("there is no job"), "{error}");
        assert!(!folder.is_held());
        folder.remove().unwrap();
        assert!(!folder.withdraw() && !folder.is_held() && folder.answer().is_none());
    }

    #[test]
    fn whole_lines_are_read_from_where_the_last_reading_ended() {
        let (_runtime, folder) = given();
        assert_eq!(folder.lines(0), (Vec::new(), 0));
        let mut log = folder.log().unwrap();
        let mut say = |message: &str| {
            let line = Line::new(Timestamp::now(), LogLevel::Info, message.to_owned());
            log.write_all(&serde_json::to_vec(&line).unwrap()).unwrap();
        };
        say("one");
        assert_eq!(folder.lines(0).1, 0, "it is not whole yet");
        let mut newline = folder.log().unwrap();
        newline.write_all(b"\n").unwrap();
        let (lines, end) = folder.lines(0);
        assert_eq!(lines.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(), ["one"]);
        say("two\nlines");
        newline.write_all(b"\nnot JSON\n").unwrap();
        let (lines, end) = folder.lines(end);
        assert_eq!(lines.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(), ["two\nlines"]);
        assert_eq!(folder.lines(end), (Vec::new(), end));
    }

    #[test]
    fn an_answer_is_there_once_it_is_whole() {
        let (_runtime, folder) = given();
        assert!(folder.answer().is_none());
        let containers = ["a1".to_owned()].into();
        folder.say(Answer { result: Ok(()), is_unsettled: false, containers, kept: brought() }).unwrap();
        let answer = folder.answer().unwrap().unwrap();
        assert_eq!((answer.kept.plan, answer.containers), (brought().plan, ["a1".to_owned()].into()));
        std::fs::write(folder.path().join(ANSWER), r#"{"format": 9}"#).unwrap();
        assert!(folder.answer().unwrap().err().unwrap().contains("format 9"));
    }
}
