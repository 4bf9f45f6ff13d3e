//! Which real parts this machine has. A test that lacks one says so; where everything is required, it fails.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The image that the test stacks run: a busybox with its links, under this name (`tests/run` makes it).
pub const IMAGE: &str = "shiparr-test/busybox:1";

/// A Docker Engine, Compose and the test image.
pub const DOCKER: &str = "docker";
/// sops and age.
pub const SOPS: &str = "sops";
/// The `git` command line with `http-backend`.
pub const GIT: &str = "git";
/// shoutrrr.
pub const SHOUTRRR: &str = "shoutrrr";
/// The right to mount, to change owners and to become another user.
pub const ROOT: &str = "root";
/// Compose 5, named by `SHIPARR_TEST_COMPOSE_5`.
pub const COMPOSE_5: &str = "compose-5";
/// nginx and openssl, for TLS in front of a Git remote.
pub const TLS: &str = "tls";
/// The right to make namespaces with mounts and a network of their own.
pub const NAMESPACES: &str = "namespaces";
/// promtool, of Prometheus.
pub const PROMTOOL: &str = "promtool";
/// sshd, for ssh remotes.
pub const SSHD: &str = "sshd";
/// `systemd-analyze`, which needs no running systemd.
pub const SYSTEMD_TOOLS: &str = "systemd-tools";
/// Chromium and its driver, for the status page.
pub const BROWSER: &str = "browser";
/// The shells that have completion scripts.
pub const SHELLS: &str = "shells";

/// Whether one of `names` is not here; says so, and panics where `SHIPARR_TESTS_REQUIRE_ALL=1` or `CI` is set.
pub fn missing(names: &[&'static str]) -> bool {
    let absent: Vec<&str> = names.iter().copied().filter(|name| !present().contains(name)).collect();
    if absent.is_empty() {
        return false;
    }
    assert!(!all_required(), "this test needs what is not here: {}", absent.join(", "));
    eprintln!("not run, because this machine lacks: {}", absent.join(", "));
    true
}

/// Whether a test that cannot run here has failed: `SHIPARR_TESTS_REQUIRE_ALL=1` or `CI` is set.
pub fn all_required() -> bool {
    std::env::var_os("SHIPARR_TESTS_REQUIRE_ALL").is_some_and(|value| value == "1")
        || std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}

/// The folder to name in `DOCKER_CONFIG` so that `docker compose` is Compose 5.
pub fn compose_5_config() -> Option<PathBuf> {
    let program = PathBuf::from(std::env::var_os("SHIPARR_TEST_COMPOSE_5")?);
    let folder = program.parent().filter(|folder| folder.ends_with("cli-plugins"))?.parent()?;
    program.is_file().then(|| folder.to_owned())
}

fn present() -> &'static BTreeSet<&'static str> {
    static PRESENT: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    PRESENT.get_or_init(|| {
        let tests = [
            (DOCKER, works("docker", &["image", "inspect", IMAGE]) && works("docker", &["compose", "version"])),
            (SOPS, works("sops", &["--version"]) && works("age-keygen", &["--version"])),
            (GIT, works("sh", &["-c", "test -x \"$(git --exec-path)/git-http-backend\""])),
            (SHOUTRRR, works("shoutrrr", &["--version"])),
            (ROOT, rustix::process::geteuid().is_root()),
            (COMPOSE_5, compose_5_config().is_some()),
            (TLS, works("nginx", &["-v"]) && works("openssl", &["version"])),
            (NAMESPACES, works("unshare", &["--mount", "--net", "--pid", "--fork", "--mount-proc", "ip", "link"])),
            (SYSTEMD_TOOLS, works("systemd-analyze", &["--version"])),
            (BROWSER, works("chromedriver", &["--version"]) && works("chromium", &["--version"])),
            (SHELLS, ["bash", "zsh", "fish"].iter().all(|shell| works(shell, &["--version"]))),
            (PROMTOOL, works("promtool", &["--version"])),
            (SSHD, works("sh", &["-c", "command -v ssh-keygen && test -x /usr/sbin/sshd"])),
        ];
        tests.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
    })
}

fn works(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
