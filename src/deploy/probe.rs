//! `healthcheck_url`: asked once a second until it answers as expected.

use std::net::IpAddr;
use std::time::Duration;

use super::{Log, StepError};
use crate::command::Limit;
use crate::config::project::Probe;
use crate::http::{self, Proxies};
use crate::model::LogLevel;
use crate::secrets::Secret;
use crate::secrets::url::{UrlParts, percent_decoded};

/// For one request; a service that hangs is asked again.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Between two requests.
const PAUSE: Duration = Duration::from_secs(1);
/// More than that of a health page is not read.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Waits until `url` answers with the expected status, at most the probe's own timeout.
///
/// # Errors
/// It did not: what it answered last, in one line. Without the URL, which may carry a secret.
pub fn wait(probe: &Probe, url: &str, proxies: &Proxies, limit: &Limit, log: &mut dyn Log) -> Result<(), StepError> {
    let own_limit = limit.at_most(probe.timeout);
    let request = request(url, proxies);
    let mut told = String::new();
    loop {
        // The status is enough: the body of a success is not read.
        let answer = match http::stream(&request, &own_limit.at_most(REQUEST_LIMIT), &mut |_| false) {
            Ok(response) if response.status == probe.expected_status => return Ok(()),
            Ok(response) => format!("it answers {} in place of {}", response.status, probe.expected_status),
            Err(error) => error.to_string(),
        };
        if answer != told && !own_limit.is_over() {
            log.line(LogLevel::Info, &format!("healthcheck_url: {answer}"));
            told.clone_from(&answer);
        }
        if !own_limit.sleep(PAUSE) {
            let last = if told.is_empty() { answer } else { told };
            return Err(StepError::for_good(format!(
                "healthcheck_url was not well within {} s: {last}",
                probe.timeout.as_secs()
            )));
        }
    }
}

/// The request for `url`; user and password in it become Basic Auth, and no proxy stands before this host itself.
fn request(url: &str, proxies: &Proxies) -> http::Request {
    let request = http::Request { max_body_bytes: MAX_BODY_BYTES, ..http::Request::default() };
    let Some(UrlParts { scheme, user, password, host, port, path_and_query, .. }) = UrlParts::of(url) else {
        return http::Request { url: url.to_owned(), proxies: proxies.clone(), ..request };
    };
    let has_credential = !user.is_empty() || password.is_some();
    let credential = || (percent_decoded(user), Secret::new(percent_decoded(password.unwrap_or_default())));
    http::Request {
        url: format!("{scheme}://{host}{port}{path_and_query}"),
        basic_auth: has_credential.then(credential),
        proxies: if is_this_host(host) { Proxies::default() } else { proxies.clone() },
        ..request
    }
}

/// `host` is without its port, an IPv6 address in brackets.
fn is_this_host(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "a test's server is a thread")]

    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::config::Template;

    #[derive(Default)]
    struct Lines(Vec<String>);

    impl Log for Lines {
        fn line(&mut self, _: LogLevel, message: &str) {
            self.0.push(message.to_owned());
        }
    }

    /// Answers one status after the other, the last one for ever.
    fn server(statuses: &'static [u16]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/health?x=y", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (number, connection) in listener.incoming().enumerate() {
                let mut connection = connection.unwrap();
                let lines = BufReader::new(connection.try_clone().unwrap()).lines();
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let status = statuses[number.min(statuses.len() - 1)];
                let _ = write!(connection, "HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            }
        });
        url
    }

    fn ask(url: &str, timeout: Duration, expected_status: u16) -> (Result<(), StepError>, Vec<String>) {
        let mut log = Lines::default();
        let probe = Probe { url: Template::new(url), timeout, expected_status };
        let unused = Proxies { http: Some("http://127.0.0.1:1".to_owned()), ..Proxies::default() };
        (wait(&probe, url, &unused, &Limit::after(Duration::from_secs(30)), &mut log), log.0)
    }

    #[test]
    fn waits_until_the_answer_is_as_expected() {
        let (result, log) = ask(&server(&[503, 404, 204]), Duration::from_secs(20), 204);
        result.unwrap();
        assert_eq!(log.len(), 2, "{log:?}");
        assert!(log[0].contains("answers 503 in place of 204"), "{log:?}");
    }

    #[test]
    fn says_what_was_answered_last_when_the_time_is_over() {
        let (result, _) = ask(&server(&[500]), Duration::from_millis(300), 200);
        assert!(result.unwrap_err().message.ends_with("it answers 500 in place of 200"));
        let (result, _) = ask("http://127.0.0.1:1/", Duration::from_millis(300), 200);
        assert!(result.unwrap_err().message.contains("127.0.0.1"));
    }

    #[test]
    fn a_credential_in_the_url_is_sent_as_such() {
        let request = request("https://user:p%40ss@host.example:8443/x?y=a@b", &Proxies::default());
        assert_eq!(request.url, "https://host.example:8443/x?y=a@b");
        let (user, password) = request.basic_auth.unwrap();
        assert_eq!((user.as_str(), password.expose()), ("user", "p@ss"));
    }

    #[test]
    fn no_proxy_stands_before_this_host() {
        let proxies = Proxies { http: Some("http://proxy.example".to_owned()), ..Proxies::default() };
        let goes_direct = |address: &str| request(&format!("http://{address}/x"), &proxies).proxies.http.is_none();
        for address in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "me:word@[::1]:80", "[::1]"] {
            assert!(goes_direct(address), "{address}");
        }
        for address in ["localhost.example", "192.168.1.5:80", "[fe80::1]", "localhost@example.com"] {
            assert!(!goes_direct(address), "{address}");
        }
    }
}
