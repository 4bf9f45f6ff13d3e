//! Users and the key: compared in constant time, remembered once they were right, and bounded in how often they may be
//! wrong.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::access::{Access, Caller};
use super::answer::Failure;
use super::failures::{Failures, group};
use super::passwords::{is_hash, matches_hash};
use super::request::Request;
use crate::config::{Auth, Settings};
use crate::secrets::Secret;

/// What carries the key.
const HEADER_KEY: &str = "X-Api-Key";
/// What carries user and password.
const HEADER_BASIC: &str = "Authorization";
/// Who asked for a deployment with the key.
const KEY_ACTOR: &str = "api-key";

/// Guards what is not open to everybody.
pub struct Guard {
    /// Key of this process, so that what is remembered is worth nothing elsewhere.
    key: [u8; 32],
    /// Under the key, one an account: what is stored together with what was right for it.
    remembered: Mutex<[Option<Mark>; ACCOUNTS]>,
    failures: Mutex<Failures>,
    /// What is being compared at the moment, by address and mark: a browser sends the same password with several
    /// requests at once, and that is one attempt.
    compared: Mutex<HashMap<(IpAddr, Mark), Weak<Outcome>>>,
    /// A hash may take 64 MiB: one at a time for those who try for the first time within the minute, and one for those
    /// who were wrong before.
    hashing: [Mutex<()>; 2],
}

/// Stands for an account, what was given for it and what that is compared with.
type Mark = [u8; 32];
/// Whether what was given is right.
type Outcome = OnceLock<bool>;

/// Who may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    Admin,
    Viewer,
    Key,
}

const ACCOUNTS: usize = 3;

/// Whether a request says who sends it. What that is worth, [`Guard::look`] tells.
pub fn has_credentials(request: &Request) -> bool {
    request.header(HEADER_BASIC).is_some() || request.header(HEADER_KEY).is_some()
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

/// What a request says of its sender.
struct Claim {
    account: Account,
    username: String,
    username_is_right: bool,
    given: String,
    stored: Secret,
}

/// Something that has to be compared. It counts as wrong until it was found right.
pub struct Attempt {
    claim: Claim,
    mark: Mark,
    address: IpAddr,
    began: Instant,
    outcome: Arc<Outcome>,
    /// Whether it is in the table of failures: one that another attempt decides is not.
    is_counted: bool,
    /// Whether its address has not been wrong within the minute.
    pub is_first: bool,
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
            remembered: Mutex::default(),
            failures: Mutex::default(),
            compared: Mutex::default(),
            hashing: [Mutex::new(()), Mutex::new(())],
        })
    }

    /// Looks at a request's credentials.
    pub fn look(&self, request: &Request, settings: &Settings, now: Instant) -> Verdict {
        let Some(auth) = &settings.auth else { return Verdict::Right(Caller::nameless(Access::Full)) };
        // The control socket has no address and is not asked; a TCP client without one is everybody.
        let address = group(request.client.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
        match self.claim(request, settings, auth).and_then(|claim| self.judge(claim, address, now)) {
            Ok(verdict) => verdict,
            Err(failure) => Verdict::Wrong(failure),
        }
    }

    /// Compares with the hash; takes as long as the hash was made to take.
    ///
    /// # Errors
    /// 401.
    pub fn verify(&self, attempt: &Attempt) -> Result<Caller, Failure> {
        let is_right = *attempt.outcome.get_or_init(|| {
            let _one_at_a_time = lock(&self.hashing[usize::from(attempt.is_first)]);
            matches_hash(attempt.claim.stored.expose(), &attempt.claim.given) && attempt.claim.username_is_right
        });
        self.conclude(attempt, is_right)
    }

    /// Nobody has the time to compare it: it was no failure.
    pub fn forget(&self, attempt: &Attempt) {
        if attempt.is_counted {
            lock(&self.failures).take_back(attempt.address, attempt.began);
        }
    }

    /// Whom a request claims to be from, and what tells whether it is. A key goes before a user: a proxy that asks for a
    /// password of its own passes that on.
    fn claim(&self, request: &Request, settings: &Settings, auth: &Auth) -> Result<Claim, Failure> {
        if let Some(given) = request.only_header(HEADER_KEY)? {
            if let Some(stored) = settings.api_key().map_err(|problem| not_to_be_had(&problem))? {
                let (username, given) = (KEY_ACTOR.to_owned(), given.to_owned());
                return Ok(Claim { account: Account::Key, username, username_is_right: true, given, stored });
            }
        }
        let Some((username, given)) = request.only_header(HEADER_BASIC)?.and_then(credentials) else {
            return Err(unauthorized("a user name and a password are needed"));
        };
        let is = |name: &str| bool::from(self.mark(&[username.as_bytes()]).ct_eq(&self.mark(&[name.as_bytes()])));
        let username_is_right = is(&auth.username);
        if !username_is_right && is(&auth.viewer) {
            if let Some(stored) = settings.viewer_password().map_err(|problem| not_to_be_had(&problem))? {
                return Ok(Claim { account: Account::Viewer, username, username_is_right: true, given, stored });
            }
        }
        // A name that nobody has takes as long as one that somebody has.
        match settings.password() {
            Ok(Some(stored)) => Ok(Claim { account: Account::Admin, username, username_is_right, given, stored }),
            Ok(None) => Err(not_to_be_had("Shiparr_AUTH_PASSWORD is not set any more")),
            Err(problem) => Err(not_to_be_had(&problem)),
        }
    }

    fn judge(&self, claim: Claim, address: IpAddr, now: Instant) -> Result<Verdict, Failure> {
        let account = claim.account as usize;
        let parts = [claim.stored.expose(), &claim.username, &claim.given].map(str::as_bytes);
        let mark = self.mark(&[&[claim.account as u8], parts[0], parts[1], parts[2]]);
        lock(&self.failures).check(address, now)?;
        if lock(&self.remembered)[account].is_some_and(|remembered| bool::from(remembered.ct_eq(&mark))) {
            return Ok(Verdict::Right(claim.caller()));
        }
        let (outcome, is_counted) = self.begin(address, mark, now)?;
        let is_first = lock(&self.failures).is_first(address);
        let attempt = Attempt { claim, mark, address, began: now, outcome, is_counted, is_first };
        if attempt.claim.account != Account::Key && is_hash(attempt.claim.stored.expose()) {
            return Ok(Verdict::Unknown(Box::new(attempt)));
        }
        let marks =
            [attempt.claim.given.as_str(), attempt.claim.stored.expose()].map(|text| self.mark(&[text.as_bytes()]));
        let is_right =
            *attempt.outcome.get_or_init(|| bool::from(marks[0].ct_eq(&marks[1])) && attempt.claim.username_is_right);
        self.conclude(&attempt, is_right).map(Verdict::Right)
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
        lock(&self.failures).count(address, now)?;
        let outcome = Arc::new(Outcome::new());
        compared.insert((address, mark), Arc::downgrade(&outcome));
        Ok((outcome, true))
    }

    fn conclude(&self, attempt: &Attempt, is_right: bool) -> Result<Caller, Failure> {
        if is_right {
            lock(&self.remembered)[attempt.claim.account as usize] = Some(attempt.mark);
            self.forget(attempt);
            return Ok(attempt.claim.caller());
        }
        log::warn!("a login from {} failed", attempt.address);
        Err(unauthorized(match attempt.claim.account {
            Account::Key => "the key is wrong",
            Account::Admin | Account::Viewer => "the user name or the password is wrong",
        }))
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

impl Claim {
    fn caller(&self) -> Caller {
        let access = match self.account {
            Account::Admin | Account::Key => Access::Full,
            Account::Viewer => Access::View,
        };
        Caller::named(access, self.username.as_str())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of them is whole whatever a thread that held it did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unauthorized(message: &str) -> Failure {
    Failure::new(401, "unauthorized", message).with_header("WWW-Authenticate", "Basic realm=\"Shiparr\"")
}

fn not_to_be_had(problem: &str) -> Failure {
    log::error!("somebody cannot log in: {problem}");
    Failure::unavailable("what to compare the password with cannot be had; the daemon's log says why")
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

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn claim(account: Account, stored: &str, given: &str) -> Claim {
        let (username, given) = ("somebody".to_owned(), given.to_owned());
        Claim { account, username, username_is_right: true, given, stored: Secret::new(stored) }
    }

    fn is_right(guard: &Guard, claim: Claim) -> bool {
        match guard.judge(claim, ADDRESS, Instant::now()) {
            Ok(Verdict::Right(_)) => true,
            Ok(Verdict::Unknown(attempt)) => guard.verify(&attempt).is_ok(),
            Ok(Verdict::Wrong(_)) | Err(_) => false,
        }
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
    fn what_was_right_for_one_account_is_worth_nothing_for_another() {
        let guard = Guard::new().unwrap();
        assert!(is_right(&guard, claim(Account::Viewer, "look", "look")));
        assert!(!is_right(&guard, claim(Account::Admin, "sesame", "look")));
        assert!(!is_right(&guard, Claim { username_is_right: false, ..claim(Account::Admin, "look", "look") }));
        assert!(is_right(&guard, claim(Account::Admin, "sesame", "sesame")));
        let access = |account| claim(account, "", "").caller().access;
        assert_eq!(
            [Account::Admin, Account::Viewer, Account::Key].map(access),
            [Access::Full, Access::View, Access::Full]
        );
    }

    #[test]
    fn a_key_is_never_read_as_a_hash() {
        let guard = Guard::new().unwrap();
        let hash = bcrypt::hash("geheim", 4).unwrap();
        assert!(is_right(&guard, claim(Account::Admin, &hash, "geheim")));
        assert!(!is_right(&guard, claim(Account::Key, &hash, "geheim")));
        assert!(is_right(&guard, claim(Account::Key, &hash, &hash)));
    }

    #[test]
    fn what_was_right_is_known_while_its_address_is_refused() {
        let guard = Guard::new().unwrap();
        for account in [Account::Admin, Account::Viewer, Account::Key] {
            assert!(is_right(&guard, claim(account, "right", "right")));
        }
        for number in 0..40 {
            assert!(!is_right(&guard, claim(Account::Admin, "right", &format!("wrong {number}"))));
        }
        for account in [Account::Admin, Account::Viewer, Account::Key] {
            assert!(is_right(&guard, claim(account, "right", "right")), "{account:?}");
            assert!(!is_right(&guard, claim(account, "changed", "changed")), "{account:?}");
        }
    }

    #[test]
    fn what_nobody_had_time_for_is_no_failure() {
        let guard = Guard::new().unwrap();
        let hash = bcrypt::hash("geheim", 4).unwrap();
        for number in 0..20 {
            let claim = claim(Account::Admin, &hash, &format!("geheim {number}"));
            let Ok(Verdict::Unknown(attempt)) = guard.judge(claim, ADDRESS, Instant::now()) else {
                panic!("{number} is refused");
            };
            assert!(attempt.is_first);
            guard.forget(&attempt);
        }
        assert!(is_right(&guard, claim(Account::Admin, &hash, "geheim")));
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
}
