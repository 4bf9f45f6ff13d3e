//! A browser: Debian's chromium without a window, driven over the WebDriver protocol, which is plain HTTP on loopback.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tempfile::TempDir;

use crate::support::daemon::kill_those_at_home;
use crate::support::{Answer, Json, MINUTE, SHORT, read_answer, wait_until};

/// A folder for pictures of every view, for people to look at; none are taken where it is not set.
const PICTURES: &str = "SHIPARR_TEST_SCREENSHOTS";
/// Pixels: a screen on a desk, and a phone.
const SIZES: [(u32, u32); 2] = [(1280, 900), (390, 844)];
const THEMES: [&str; 2] = ["light", "dark"];
/// The name of an element's id (WebDriver, section 12).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Longer than a page takes to load on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Keys that are no letters (WebDriver, section 17.4.2).
pub mod key {
    /// To the next thing that takes keys.
    pub const TAB: &str = "\u{e004}";
    /// Presses what has the focus.
    pub const ENTER: &str = "\u{e007}";
    /// Ticks a box.
    pub const SPACE: &str = " ";
    /// Leaves a dialog.
    pub const ESCAPE: &str = "\u{e00c}";
}

/// A browser with one page. It and its processes end when it is dropped.
pub struct Browser {
    home: TempDir,
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts one.
    #[track_caller]
    pub fn new() -> Browser {
        let home = TempDir::with_prefix("shiparr-test-browser-").expect("make a folder");
        // It ends where the port that it found free for IPv4 is taken for IPv6.
        let (driver, port) = wait_until(SHORT, "chromedriver to listen", || start_driver(&home));
        let mut browser = Browser { home, driver, port, session: String::new() };
        let profile = browser.home.path().join("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({ "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } });
        let wanted = json!({ "capabilities": wanted });
        // Several that start at once on a busy machine take their time, and one may give up.
        let session = wait_until(MINUTE, "a browser to start", || {
            browser.try_call("POST", "/session", &wanted).map_err(|problem| println!("no browser yet: {problem}")).ok()
        });
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("a session has an id"));
        browser
    }

    /// Opens an address.
    #[track_caller]
    pub fn open(&self, url: &str) {
        // Two addresses that differ in their fragment are one page.
        self.post("/url", &json!({ "url": "about:blank" }));
        self.post("/url", &json!({ "url": url }));
    }

    /// Goes back one step of the history.
    #[track_caller]
    pub fn back(&self) {
        self.post("/back", &json!({}));
    }

    /// What a script answers.
    #[track_caller]
    pub fn run(&self, script: &str) -> Json {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The text that the page shows, as a person would read it.
    #[track_caller]
    pub fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page shows this.
    #[track_caller]
    pub fn wait_for_text(&self, text: &str) {
        let mut shown = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(SHORT, "a text on the page", || {
                shown = self.text();
                shown.contains(text).then_some(())
            });
        }));
        assert!(found.is_ok(), "the page does not show `{text}` but:\n{shown}");
    }

    /// Waits until a script answers something that counts as true.
    #[track_caller]
    pub fn wait_for(&self, what: &str, condition: &str) {
        wait_until(SHORT, what, || (self.run(&format!("return Boolean({condition})")) == true).then_some(()));
    }

    /// Clicks the thing of this kind and name, as a screen reader would name it, once it is there.
    #[track_caller]
    pub fn click(&self, kind: &str, name: &str) {
        let path = format!("//{kind}[@aria-label=\"{name}\" or normalize-space()=\"{name}\"]");
        let found = wait_until(SHORT, &format!("a {kind} called {name}"), || {
            let wanted = json!({ "using": "xpath", "value": path });
            self.try_call("POST", &format!("{}/element", self.session), &wanted).ok()
        });
        let element = found[ELEMENT].as_str().expect("an element has an id");
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Presses a key and lets it go.
    #[track_caller]
    pub fn press(&self, key: &str) {
        let strokes = [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    /// Presses Tab until what has the focus is called so.
    #[track_caller]
    pub fn tab_to(&self, name: &str) {
        const MOST: usize = 40;
        let mut passed = Vec::new();
        for _ in 0..MOST {
            self.press(key::TAB);
            let at = self.focused();
            if at == name {
                return;
            }
            passed.push(at);
        }
        panic!("Tab does not lead to `{name}`, but to {passed:?}");
    }

    /// The name of what has the focus.
    #[track_caller]
    pub fn focused(&self) -> String {
        let script =
            "const at = document.activeElement; return at.getAttribute('aria-label') ?? at.name ?? at.innerText";
        let name = self.run(script).as_str().unwrap_or_default().trim().to_owned();
        if name.is_empty() {
            self.run("return document.activeElement.innerText.trim()").as_str().unwrap_or_default().to_owned()
        } else {
            name
        }
    }

    /// What went wrong on the page since this was asked last: errors of scripts, refusals of the policy, failed requests.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().expect("a list").iter();
        let grave = entries.filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")));
        grave.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Nothing went wrong on the page.
    #[track_caller]
    pub fn assert_content(&self) {
        assert_eq!(self.complaints(), [""; 0]);
    }

    /// Takes pictures of what is shown, for each size and theme, and holds that nothing is wider than the screen.
    #[track_caller]
    pub fn picture(&self, name: &str) {
        for (width, height) in SIZES {
            let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
            self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
            let widest = self.run("return document.documentElement.scrollWidth").as_u64();
            assert!(widest.is_some_and(|widest| widest <= u64::from(width)), "{name} is {widest:?} wide at {width}");
            let Some(folder) = std::env::var_os(PICTURES).map(PathBuf::from) else { continue };
            fs::create_dir_all(&folder).expect("make the folder of the pictures");
            for theme in THEMES {
                let feature = json!({ "name": "prefers-color-scheme", "value": theme });
                self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
                let tall = self.run("return document.documentElement.scrollHeight").as_u64().expect("a height");
                let clip = json!({ "x": 0, "y": 0, "width": width, "height": tall, "scale": 1 });
                let shot = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
                let shot = self.devtools("Page.captureScreenshot", &shot);
                let png = STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("base64");
                fs::write(folder.join(format!("{name}-{width}-{theme}.png")), png).expect("write a picture");
            }
        }
        self.devtools("Emulation.clearDeviceMetricsOverride", &json!({}));
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [] }));
    }

    #[track_caller]
    fn devtools(&self, command: &str, parameters: &Json) -> Json {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Json) -> Json {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Json) -> Json {
        self.try_call(method, path, body).unwrap_or_else(|problem| panic!("{method} {path} {body}: {problem}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Json) -> Result<Json, String> {
        let mut answer = self.exchange(method, path, body).map_err(|error| error.to_string())?.json();
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].take()),
        }
    }

    fn exchange(&self, method: &str, path: &str, body: &Json) -> std::io::Result<Answer> {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        read_answer(&mut BufReader::new(stream), false)
    }
}

/// Starts chromedriver on a port that it finds itself.
fn start_driver(home: &TempDir) -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("start chromedriver");
    let lines = BufReader::new(driver.stdout.take().expect("its output is piped")).lines();
    let said = lines.map_while(Result::ok).find(|line| line.contains("successfully on port "));
    let port = said.and_then(|line| line.rsplit(' ').next()?.trim_end_matches('.').parse().ok());
    if port.is_none() {
        driver.wait().expect("wait for its end");
    }
    Some((driver, port?))
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Ok(shown) = self.try_call(
                "POST",
                &format!("{}/execute/sync", self.session),
                &json!({ "script": "return document.body.innerText", "args": [] }),
            ) {
                eprintln!("---- the page ----\n{}\n---- end of the page ----", shown.as_str().unwrap_or_default());
            }
        }
        // It ends its own processes where it can still be asked to.
        let _ = self.try_call("DELETE", &self.session, &json!({}));
        if let Some(group) = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
        kill_those_at_home(self.home.path());
    }
}
