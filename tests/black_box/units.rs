//! The units, as far as systemd's own tools judge them without a running service manager.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{missing, parts};

/// What `systemd-analyze security` may find, in tenths.
const MOST_EXPOSED: &str = "--threshold=30";
const UNITS: [&str; 3] = ["shiparr.service", "shiparr.socket", "shiparr-secrets.service"];

/// The units of one kind, with the program under test as theirs.
struct Units(TempDir);

impl Units {
    fn of(folder: &str) -> Units {
        let units = TempDir::with_prefix("shiparr-test-units-").expect("make a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(source).expect("list the units").flatten().filter(|entry| entry.path().is_file()) {
            let text = fs::read_to_string(entry.path())
                .expect("read a unit")
                .replace("/usr/bin/shiparr", env!("CARGO_BIN_EXE_shiparr"));
            // The man pages are not installed here.
            let lines = text.lines().filter(|line| !line.starts_with("Documentation="));
            let text = lines.collect::<Vec<_>>().join("\n");
            fs::write(units.path().join(entry.file_name()), text + "\n").expect("write a unit");
        }
        Units(units)
    }

    fn add(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("make a folder");
        fs::write(path, text).expect("write a drop-in");
    }

    #[track_caller]
    fn verify(&self, unit: &str) {
        self.analyze(&["verify", "--man=no"], unit);
    }

    /// Its tools tell warnings on standard error and succeed.
    #[track_caller]
    fn analyze(&self, args: &[&str], unit: &str) {
        let path = self.0.path().join(unit);
        let output = Command::new("systemd-analyze").args(args).arg(path).output().expect("start systemd-analyze");
        let told = String::from_utf8_lossy(&output.stderr);
        // Those of other units of this host are not ours.
        let ours: Vec<&str> = told.lines().filter(|line| line.contains("shiparr")).collect();
        assert!(ours.is_empty(), "{args:?} {unit}: {ours:?}");
        let found = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{args:?} {unit}: {told}{found}");
    }
}

/// Holds a drop-in against its unit; its first line is a comment that begins with the path.
#[track_caller]
pub fn verify_drop_in(first_line: &str, text: &str) {
    if missing(&[parts::SYSTEMD_TOOLS]) {
        return;
    }
    let path = first_line.strip_prefix("# /etc/systemd/system/").expect("a comment that names the file");
    let path = path.split(':').next().unwrap_or(path);
    let unit = path.split(".d/").next().expect("a unit");
    let units = Units::of("systemd");
    units.add(
        "shiparr-failed.service",
        &fs::read_to_string(example("shiparr-failed.service")).expect("read an example"),
    );
    units.add(path, text);
    units.verify(unit);
}

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/examples").join(name)
}

#[test]
fn units_and_drop_ins_are_as_systemd_wants_them() {
    if missing(&[parts::SYSTEMD_TOOLS]) {
        return;
    }
    let system = Units::of("systemd");
    UNITS.iter().for_each(|unit| system.verify(unit));
    for entry in fs::read_dir(example("")).expect("list the examples").flatten() {
        let text = fs::read_to_string(entry.path()).expect("read an example");
        verify_drop_in(text.lines().next().expect("a first line"), &text);
    }
}

#[test]
fn the_sandbox_leaves_little_open() {
    if missing(&[parts::SYSTEMD_TOOLS]) {
        return;
    }
    let system = Units::of("systemd");
    for unit in ["shiparr.service", "shiparr-secrets.service"] {
        system.analyze(&["security", "--offline=yes", "--no-pager", MOST_EXPOSED], unit);
    }
}
