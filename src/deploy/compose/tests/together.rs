//! Many stacks that are waited for at the same time.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use super::*;

const STACKS: u32 = 20;

/// Containers that never come up, each a stack of its own, and a docker client that writes down what it is asked.
struct Stuck {
    compose: Compose,
    folder: tempfile::TempDir,
    label: String,
}

impl Stuck {
    fn new(script: &str) -> Stuck {
        let folder = tempfile::tempdir().unwrap();
        let client = folder.path().join("docker-that-counts");
        let calls = folder.path().join("calls");
        std::fs::write(&calls, "").unwrap();
        std::fs::write(&client, format!("#!/bin/sh\necho \"$1\" >> {}\n{script}\n", calls.display())).unwrap();
        std::fs::set_permissions(&client, PermissionsExt::from_mode(0o755)).unwrap();
        let compose = Compose::with(Client::new(&client, Lab::environments().remove(0)));
        let label = format!("shiparr-test-stuck={}-{}", std::process::id(), folder.path().display());
        Stuck { compose, folder, label }
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.folder.path().join("calls")).unwrap();
        calls.lines().map(str::to_owned).collect()
    }

    fn docker(&self, args: &[&str]) -> String {
        let docker = Client::new(Path::new("docker"), Lab::environments().remove(0));
        let answer = docker.ask("docker", args, &Limit::after(LIMIT)).unwrap();
        String::from_utf8(answer.stdout).unwrap().trim().to_owned()
    }

    fn plan(&self, number: u32) -> Plan {
        let project = format!("shiparr-test-{}-stuck-{number}", std::process::id());
        Plan { project, services: [("a".to_owned(), 1)].into(), ..Plan::default() }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let made = self.docker(&["ps", "-aq", "--filter", &format!("label={}", self.label)]);
        if !made.is_empty() {
            self.docker(&["rm", "-f"].into_iter().chain(made.split_whitespace()).collect::<Vec<_>>());
        }
    }
}

/// The children of the many who wait do not grow with their number, and each sees its own containers.
#[test]
fn stacks_that_wait_share_their_looks() {
    const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
    /// 100 ms growing to 1 s are eleven looks in five seconds; the other questions are the first one, which lists.
    const MOST_CALLS: usize = 16;
    let stuck = Stuck::new("exec docker \"$@\"");
    for number in 0..STACKS {
        let labels = [
            stuck.label.clone(),
            format!("com.docker.compose.project={}", stuck.plan(number).project),
            "com.docker.compose.service=a".to_owned(),
            "com.docker.compose.oneoff=False".to_owned(),
        ];
        let name = format!("{}-a-1", stuck.plan(number).project);
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let create = ["create", "--network", "none", "--name", &name].into_iter().chain(labels);
        stuck.docker(&create.chain(["shiparr-test/busybox:1"]).collect::<Vec<_>>());
    }
    let start = Barrier::new(STACKS as usize);
    let timing =
        Timing { since: Timestamp::now(), health_timeout: HEALTH_TIMEOUT, settle_time: Duration::from_secs(3) };
    let began: Vec<Instant> = std::thread::scope(|scope| {
        let wait = |number: u32| {
            let (stuck, start, timing) = (&stuck, &start, &timing);
            scope.spawn(move || {
                let plan = stuck.plan(number);
                start.wait();
                let began = Instant::now();
                let waited = stuck.compose.wait(&plan, timing, &Limit::after(LIMIT), &mut Lines::default());
                let message = waited.unwrap_err().message;
                assert!(message.contains(&format!("{}-a-1 is created and not started", plan.project)), "{message}");
                began
            })
        };
        let waiting: Vec<_> = (0..STACKS).map(wait).collect();
        waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A busy host does not let all begin at the same time: whoever is late looks for as long after the others.
    let late = began.iter().max().unwrap().duration_since(*began.iter().min().unwrap());
    let most = MOST_CALLS + (late.as_millis() / FIRST_PAUSE.as_millis()) as usize;
    // When it fails, each says what its own container wrote last.
    let calls: Vec<String> = stuck.calls().into_iter().filter(|verb| verb != "logs").collect();
    assert!(calls.len() <= most, "{} for {STACKS} stacks, late by {late:?}: {calls:?}", calls.len());
    assert_eq!(stuck.compose.looks.wanted_count(), 0, "nobody waits any more");
}

#[test]
fn whoever_is_cancelled_leaves_at_once_also_while_docker_hangs() {
    /// Far less than the client hangs, also on a host that is busy.
    const AT_ONCE: Duration = Duration::from_secs(10);
    // A client that does not listen to SIGTERM either.
    let stuck = Stuck::new("trap '' TERM; sleep 60");
    let limits: Vec<Limit> = (0..4).map(|_| Limit::after(LIMIT)).collect();
    let timing = Timing { since: Timestamp::now(), health_timeout: LIMIT, settle_time: Duration::from_secs(3) };
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .zip(&limits)
            .map(|(number, limit)| {
                let (stuck, timing) = (&stuck, &timing);
                scope.spawn(move || {
                    let plan = stuck.plan(number);
                    stuck.compose.wait(&plan, timing, limit, &mut Lines::default()).unwrap_err();
                    Instant::now()
                })
            })
            .collect();
        let deadline = Instant::now() + LIMIT;
        while stuck.calls().is_empty() {
            assert!(Instant::now() < deadline, "nobody asks");
            std::thread::yield_now();
        }
        for (limit, waiting) in limits.iter().zip(waiting) {
            let cancelled = Instant::now();
            limit.cancel();
            let took = waiting.join().unwrap().saturating_duration_since(cancelled);
            println!("left after {took:?}");
            assert!(took < AT_ONCE, "left after {took:?}");
        }
    });
}
