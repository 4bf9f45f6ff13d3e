//! Who watches the watcher: the heartbeat goes out while all is well, and not before.

use crate::support::*;

#[test]
fn the_heartbeat_waits_for_docker_and_its_token_stays_secret() {
    if missing(&[parts::DOCKER]) {
        return;
    }
    let (receiver, mut proxy) = (Receiver::start(), DockerProxy::start());
    proxy.close();
    let mut daemon = Daemon::new();
    let url = receiver.url("/ping/hush-hush?status=up");
    let file = daemon.folder().join("heartbeat");
    std::fs::write(&file, format!("{url}\n")).expect("write the URL");
    daemon.env("DOCKER_HOST", proxy.host()).env("Shiparr_HEARTBEAT_URL_FILE", &file).start();
    wait_until(SHORT, "the reason in the log", || daemon.log().contains("the heartbeat is withheld: ").then_some(()));
    assert_eq!(receiver.requests().len(), 0);

    proxy.open();
    let request = wait_until(SHORT, "the heartbeat", || receiver.requests().pop());
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/ping/hush-hush?status=up"));
    wait_until(SHORT, "the end in the log", || daemon.log().contains("the heartbeat goes on").then_some(()));
    assert!(!daemon.log().contains("hush-hush"), "{}", daemon.log());
    assert!(daemon.stop().success());
    assert_eq!(receiver.requests().len(), 1, "it is sent once a minute");
}
