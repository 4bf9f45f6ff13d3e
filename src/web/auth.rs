//! Basic Auth: a password or its hash, compared in constant time, remembered once it was right, and bounded in how
//! often it may be wrong.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::access::{Access, Caller};
use super::answer::Failure;
use super::request::Request;
use crate::config::Settings;
use crate::secrets::Secret;

/// Wrong passwords that one address may send within [`FAILURE_WINDOW`]; one more is answered without looking at it.
const FAILURES_MAX: usize = 5;
/// How long a wrong password counts.
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered for wrong passwords; beyond them the one with the oldest failure is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Guards what is behind Basic Auth.
pub struct Guard {
    /// Key of this process, so that what is remembered is worth nothing elsewhere.
    key: [u8; 32],
    /// Under the key: the stored password together with the one that was right for it.
    remembered: Mutex<Option<Mark>>,
    failures: Mutex<HashMap<IpAddr, Failures>>,
    /// What is being compared at the moment, by address and mark: a browser sends the same password with several
    /// requests at once, and that is one attempt.
    compared: Mutex<HashMap<(IpAddr, Mark), Weak<Outcome>>>,
    /// A hash may take 64 MiB: one at a time.
    hashing: Mutex<()>,
}

/// Stands for a user name, a password and what it is compared with.
type Mark = [u8; 32];
/// Whether a password was found right.
type Outcome = OnceLock<bool>;

#[derive(Default)]
struct Failures {
    at: Vec<Instant>,
    was_told: bool,
}

/// What the credentials of a request are worth, as far as it is known without hashing.
pub enum Verdict {
    /// They are right, and this is whose they are.
    Right(Caller),
    /// They are not; this is the answer.
    Wrong(Failure),
    /// A hash has to tell: [`Guard::verify`].
    Unknown(Box<Attempt>),
}

/// A password that has to be compared with a hash. It counts as wrong until it was found right.
pub struct Attempt {
    /// Who it is, if it is right.
    caller: Caller,
    username_is_right: bool,
    stored: Secret,
    given: String,
    mark: Mark,
    address: IpAddr,
    began: Instant,
    outcome: Arc<Outcome>,
    /// Whether it is in the table of failures: one that another attempt decides is not.
    is_counted: bool,
}

impl Guard {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// The system's, where it has no random bytes.
    pub fn new() -> Result<Guard, String> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| format!("no random bytes: {error}"))?;
        Ok(Guard {
            key,
            remembered: Mutex::new(None),
            failures: Mutex::new(HashMap::new()),
            compared: Mutex::new(HashMap::new()),
            hashing: Mutex::new(()),
        })
    }

    /// Looks at a request's credentials.
    pub fn look(&self, request: &Request, settings: &Settings, now: Instant) -> Verdict {
        let Some(auth) = &settings.auth else { return Verdict::Right(Caller::nameless(Access::Full)) };
        let Some((username, password)) = request.header("Authorization").and_then(credentials) else {
            return Verdict::Wrong(unauthorized("a user name and a password are needed"));
        };
        let stored = match settings.password() {
            Ok(Some(stored)) => stored,
            Ok(None) => return Verdict::Wrong(no_password("Shiparr_AUTH_PASSWORD is not set any more")),
            Err(problem) => return Verdict::Wrong(no_password(&problem)),
        };
        let mark = self.mark(&[stored.expose().as_bytes(), username.as_bytes(), password.as_bytes()]);
        if lock(&self.remembered).is_some_and(|remembered| bool::from(remembered.ct_eq(&mark))) {
            return Verdict::Right(Caller::named(Access::Full, username));
        }
        // The control socket has no address and is not asked; a TCP client without one is everybody.
        let address = group(request.peer.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        let (outcome, is_counted) = match self.begin(address, mark, now) {
            Ok(begun) => begun,
            Err(failure) => return Verdict::Wrong(failure),
        };
        let username_is_right =
            bool::from(self.mark(&[username.as_bytes()]).ct_eq(&self.mark(&[auth.username.as_bytes()])));
        let given = password;
        let caller = Caller::named(Access::Full, username);
        let attempt =
            Attempt { caller, username_is_right, stored, given, mark, address, began: now, outcome, is_counted };
        if is_hash(attempt.stored.expose()) {
            return Verdict::Unknown(Box::new(attempt));
        }
        let marks = [attempt.given.as_bytes(), attempt.stored.expose().as_bytes()].map(|text| self.mark(&[text]));
        let is_right =
            *attempt.outcome.get_or_init(|| bool::from(marks[0].ct_eq(&marks[1])) && attempt.username_is_right);
        match self.conclude(&attempt, is_right) {
            Ok(caller) => Verdict::Right(caller),
            Err(failure) => Verdict::Wrong(failure),
        }
    }

    /// Compares with the hash; takes as long as the hash was made to take.
    ///
    /// # Errors
    /// 401.
    pub fn verify(&self, attempt: &Attempt) -> Result<Caller, Failure> {
        let is_right = *attempt.outcome.get_or_init(|| {
            let _one_at_a_time = lock(&self.hashing);
            matches_hash(attempt.stored.expose(), &attempt.given) && attempt.username_is_right
        });
        self.conclude(attempt, is_right)
    }

    /// Where the outcome of an attempt will be, and whether it was counted as a failure for now: one that is made
    /// already, and not known to be wrong, is not made twice.
    fn begin(&self, address: IpAddr, mark: Mark, now: Instant) -> Result<(Arc<Outcome>, bool), Failure> {
        let mut compared = lock(&self.compared);
        compared.retain(|_, outcome| outcome.strong_count() > 0);
        let same = compared.get(&(address, mark)).and_then(Weak::upgrade);
        if let Some(outcome) = same.filter(|outcome| outcome.get() != Some(&false)) {
            return Ok((outcome, false));
        }
        self.count_failure(address, now)?;
        let outcome = Arc::new(Outcome::new());
        compared.insert((address, mark), Arc::downgrade(&outcome));
        Ok((outcome, true))
    }

    fn conclude(&self, attempt: &Attempt, is_right: bool) -> Result<Caller, Failure> {
        if is_right {
            *lock(&self.remembered) = Some(attempt.mark);
            if let Some(failures) = lock(&self.failures).get_mut(&attempt.address).filter(|_| attempt.is_counted) {
                if let Some(index) = failures.at.iter().position(|at| *at == attempt.began) {
                    failures.at.remove(index);
                }
            }
            return Ok(attempt.caller.clone());
        }
        log::warn!("a login from {} failed", attempt.address);
        Err(unauthorized("the user name or the password is wrong"))
    }

    /// Counts a failure before it is known to be one, so that many at once are no more than five.
    fn count_failure(&self, address: IpAddr, now: Instant) -> Result<(), Failure> {
        let mut table = lock(&self.failures);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < FAILURE_WINDOW;
        if table.len() >= ADDRESSES_MAX && !table.contains_key(&address) {
            table.retain(|_, failures| failures.at.iter().any(is_recent));
            let oldest =
                table.iter().min_by_key(|(_, failures)| failures.at.last().copied()).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| table.len() >= ADDRESSES_MAX) {
                table.remove(&oldest);
            }
        }
        let failures = table.entry(address).or_default();
        failures.at.retain(is_recent);
        if failures.at.len() < FAILURES_MAX {
            failures.at.push(now);
            failures.was_told = false;
            return Ok(());
        }
        if !failures.was_told {
            failures.was_told = true;
            log::warn!("{FAILURES_MAX} logins from {address} failed within a minute: more are not looked at");
        }
        let wait = failures.at.first().map_or(FAILURE_WINDOW, |first| FAILURE_WINDOW.saturating_sub(now - *first));
        Err(Failure::new(
            429,
            "too_many_failures",
            "there were too many wrong passwords from your address; wait a minute",
        )
        .with_header("Retry-After", (wait.as_secs() + 1).min(FAILURE_WINDOW.as_secs()).to_string()))
    }

    fn mark(&self, parts: &[&[u8]]) -> Mark {
        // SHA-256 takes keys of every length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else { return [0; 32] };
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of them is whole whatever a thread that held it did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unauthorized(message: &str) -> Failure {
    Failure::new(401, "unauthorized", message).with_header("WWW-Authenticate", "Basic realm=\"Shiparr\"")
}

fn no_password(problem: &str) -> Failure {
    log::error!("nobody can log in: {problem}");
    Failure::unavailable("the password to compare with cannot be had; the daemon's log says why")
}

/// `Basic` and the base64 of `user:password`.
fn credentials(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// One host, or the network that one IPv6 host chooses its addresses from.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn is_bcrypt(stored: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| stored.starts_with(prefix))
}

fn is_hash(stored: &str) -> bool {
    stored.starts_with("$argon2") || is_bcrypt(stored)
}

fn matches_hash(stored: &str, given: &str) -> bool {
    let outcome = if is_bcrypt(stored) {
        bcrypt::verify(given, stored).map_err(|error| error.to_string())
    } else {
        PasswordHash::new(stored).map_err(|error| error.to_string()).and_then(|hash| {
            match Argon2::default().verify_password(given.as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(argon2::password_hash::Error::Password) => Ok(false),
                Err(error) => Err(error.to_string()),
            }
        })
    };
    outcome.unwrap_or_else(|problem| {
        log::error!("the password hash in Shiparr_AUTH_PASSWORD cannot be used: {problem}");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn attempt(guard: &Guard, stored: &str, username_is_right: bool, given: &str) -> Attempt {
        let mark = guard.mark(&[stored.as_bytes(), b"admin", given.as_bytes()]);
        let stored = Secret::new(stored);
        let (given, outcome, began) = (given.to_owned(), Arc::default(), Instant::now());
        let caller = Caller::nameless(Access::Full);
        Attempt { caller, username_is_right, stored, given, mark, address: ADDRESS, began, outcome, is_counted: true }
    }

    #[test]
    fn credentials_are_basic_ones() {
        assert_eq!(credentials("Basic YTpiOmM="), Some(("a".into(), "b:c".into())));
        assert_eq!(credentials("basic  YTo="), Some(("a".into(), String::new())));
        for header in ["Bearer YTpi", "Basic", "Basic YTpi!", "Basic YWI=", "Basic /w=="] {
            assert_eq!(credentials(header), None, "{header}");
        }
    }

    #[test]
    fn hashes_of_both_kinds_tell_right_from_wrong() {
        let guard = Guard::new().unwrap();
        let bcrypt = bcrypt::hash("geheim", 4).unwrap();
        let salt = argon2::password_hash::SaltString::from_b64("c29tZXNhbHQ").unwrap();
        let cheap = Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            argon2::Params::new(64, 1, 1, None).unwrap(),
        );
        let argon2 = argon2::PasswordHasher::hash_password(&cheap, b"geheim", &salt).unwrap().to_string();
        for stored in [bcrypt, argon2] {
            assert!(is_hash(&stored));
            assert!(guard.verify(&attempt(&guard, &stored, true, "geheim")).is_ok());
            assert!(guard.verify(&attempt(&guard, &stored, false, "geheim")).is_err());
            assert!(guard.verify(&attempt(&guard, &stored, true, "Geheim")).is_err());
            assert!(guard.verify(&attempt(&guard, &stored, true, "")).is_err());
        }
        assert!(guard.verify(&attempt(&guard, "$argon2id$nonsense", true, "x")).is_err());
    }

    #[test]
    fn the_sixth_failure_within_a_minute_is_not_looked_at() {
        let guard = Guard::new().unwrap();
        let start = Instant::now();
        for second in 0..5 {
            assert!(guard.count_failure(ADDRESS, start + Duration::from_secs(second)).is_ok());
        }
        let refused = guard.count_failure(ADDRESS, start + Duration::from_secs(10)).unwrap_err();
        let answer = super::super::answer::Answer::from(refused).into_response();
        assert_eq!(answer.status_code().0, 429);
        let wait = answer.headers().iter().find(|header| header.field.equiv("Retry-After")).unwrap();
        assert_eq!(wait.value.as_str(), "51");
        assert!(guard.count_failure(IpAddr::V4([192, 0, 2, 2].into()), start).is_ok());
        assert!(guard.count_failure(ADDRESS, start + Duration::from_secs(60)).is_ok());
        assert!(guard.count_failure(ADDRESS, start + Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_right_password_counts_as_no_failure() {
        let guard = Guard::new().unwrap();
        for _ in 0..20 {
            let attempt = attempt(&guard, "$2b$04$", true, "x");
            guard.count_failure(ADDRESS, attempt.began).unwrap();
            guard.conclude(&attempt, true).unwrap();
        }
    }

    #[test]
    fn the_same_password_at_once_is_one_attempt_until_it_is_known_to_be_wrong() {
        let guard = Guard::new().unwrap();
        let now = Instant::now();
        let (first, is_counted) = guard.begin(ADDRESS, [1; 32], now).unwrap();
        assert!(is_counted);
        for _ in 0..20 {
            let (same, is_counted) = guard.begin(ADDRESS, [1; 32], now).unwrap();
            assert!(Arc::ptr_eq(&first, &same) && !is_counted);
        }
        first.set(false).unwrap();
        for mark in 1..=4 {
            assert!(guard.begin(ADDRESS, [mark; 32], now).unwrap().1, "{mark}");
        }
        assert!(guard.begin(ADDRESS, [1; 32], now).is_err());
        drop(first);
        let other = guard.begin(IpAddr::V4([192, 0, 2, 2].into()), [1; 32], now).unwrap();
        assert_eq!((other.1, lock(&guard.compared).len()), (true, 1));
    }

    #[test]
    fn the_table_of_addresses_has_a_bound() {
        let guard = Guard::new().unwrap();
        let start = Instant::now();
        for index in 0..ADDRESSES_MAX as u32 + 100 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(index));
            guard.count_failure(address, start + Duration::from_micros(u64::from(index))).unwrap();
        }
        assert_eq!(lock(&guard.failures).len(), ADDRESSES_MAX);
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        assert_eq!(group("2001:db8::1".parse().unwrap()), group("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(group("2001:db8::1".parse().unwrap()), group("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(group("::ffff:192.0.2.1".parse().unwrap()), ADDRESS);
    }
}
