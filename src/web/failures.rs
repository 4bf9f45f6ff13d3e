//! How often passwords were wrong, by the address that they came from.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::answer::Failure;

/// Wrong passwords that one address may send within [`WINDOW`]; one more is answered without looking at it.
pub const FAILURES_MAX: usize = 5;
/// How long a wrong password counts.
const WINDOW: Duration = Duration::from_secs(60);
/// What an address sends beyond [`FAILURES_MAX`] is still compared with what was right before, because somebody who is
/// logged in may share it with those who guess; so often a second, that this is no way to guess faster.
const LOOKS_MAX: usize = 50;
/// See [`LOOKS_MAX`].
const LOOKS_WINDOW: Duration = Duration::from_secs(1);
/// Addresses that are remembered; beyond them the one with the oldest failure is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// The table.
#[derive(Default)]
pub struct Failures {
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Default)]
struct Address {
    at: Vec<Instant>,
    was_told: bool,
    /// Since when the refusals are counted, and how many there were.
    refused: Option<(Instant, usize)>,
}

impl Failures {
    /// Whether what this address sends may be compared with what was right before.
    ///
    /// # Errors
    /// 429.
    pub fn check(&self, address: IpAddr, now: Instant) -> Result<(), Failure> {
        let refused = self.addresses.get(&address).and_then(|known| known.refused);
        match refused {
            Some((since, count)) if count >= LOOKS_MAX && now.saturating_duration_since(since) < LOOKS_WINDOW => {
                Err(too_many(LOOKS_WINDOW))
            }
            _ => Ok(()),
        }
    }

    /// Counts a failure before it is known to be one, so that many at once are no more than five.
    ///
    /// # Errors
    /// 429.
    pub fn count(&mut self, address: IpAddr, now: Instant) -> Result<(), Failure> {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < WINDOW;
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.make_room(is_recent);
        }
        let known = self.addresses.entry(address).or_default();
        known.at.retain(is_recent);
        if known.at.len() < FAILURES_MAX {
            known.at.push(now);
            known.was_told = false;
            return Ok(());
        }
        if !known.was_told {
            known.was_told = true;
            log::warn!("{FAILURES_MAX} logins from {address} failed within a minute: more are not looked at");
        }
        known.refused = match known.refused {
            Some((since, count)) if now.saturating_duration_since(since) < LOOKS_WINDOW => Some((since, count + 1)),
            _ => Some((now, 1)),
        };
        Err(too_many(known.at.first().map_or(WINDOW, |first| WINDOW.saturating_sub(now - *first))))
    }

    /// Takes back the failure that was counted at `began`: it was none.
    pub fn take_back(&mut self, address: IpAddr, began: Instant) {
        if let Some(known) = self.addresses.get_mut(&address) {
            if let Some(index) = known.at.iter().position(|at| *at == began) {
                known.at.remove(index);
            }
        }
    }

    /// Whether an address has no failure but the one that is counted for what it tries now.
    pub fn is_first(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_none_or(|known| known.at.len() <= 1)
    }

    fn make_room(&mut self, is_recent: impl Fn(&Instant) -> bool) {
        self.addresses.retain(|_, known| known.at.iter().any(&is_recent));
        if self.addresses.len() >= ADDRESSES_MAX {
            let oldest = self.addresses.iter().min_by_key(|(_, known)| known.at.last().copied());
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.addresses.remove(&oldest);
            }
        }
    }
}

/// One host, or the network that one IPv6 host chooses its addresses from.
pub fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

fn too_many(wait: Duration) -> Failure {
    let message = "there were too many wrong passwords from your address; wait a minute";
    Failure::new(429, "too_many_failures", message)
        .with_header("Retry-After", (wait.as_secs() + 1).min(WINDOW.as_secs()).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::answer::Answer;
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn the_sixth_failure_within_a_minute_is_not_looked_at() {
        let mut failures = Failures::default();
        let start = Instant::now();
        for second in 0..5 {
            assert!(failures.count(ADDRESS, start + Duration::from_secs(second)).is_ok());
        }
        let refused = failures.count(ADDRESS, start + Duration::from_secs(10)).unwrap_err();
        let answer = Answer::from(refused).into_response();
        assert_eq!(answer.status_code().0, 429);
        let wait = answer.headers().iter().find(|header| header.field.equiv("Retry-After")).unwrap();
        assert_eq!(wait.value.as_str(), "51");
        assert!(failures.count(OTHER, start).is_ok());
        assert!(failures.count(ADDRESS, start + Duration::from_secs(60)).is_ok());
        assert!(failures.count(ADDRESS, start + Duration::from_secs(60)).is_err());
    }

    #[test]
    fn what_is_refused_is_compared_with_what_is_known_only_so_often() {
        let mut failures = Failures::default();
        let start = Instant::now();
        for _ in 0..FAILURES_MAX {
            failures.count(ADDRESS, start).unwrap();
        }
        for _ in 0..LOOKS_MAX {
            assert!(failures.check(ADDRESS, start).is_ok());
            assert!(failures.count(ADDRESS, start).is_err());
        }
        assert!(failures.check(ADDRESS, start + Duration::from_millis(999)).is_err());
        assert!(failures.check(OTHER, start).is_ok());
        assert!(failures.check(ADDRESS, start + LOOKS_WINDOW).is_ok());
        assert!(failures.count(ADDRESS, start + LOOKS_WINDOW).is_err(), "the minute is not over");
        assert!(failures.check(ADDRESS, start + LOOKS_WINDOW).is_ok());
    }

    #[test]
    fn what_was_right_is_no_failure() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for _ in 0..20 {
            failures.count(ADDRESS, now).unwrap();
            assert!(failures.is_first(ADDRESS));
            failures.take_back(ADDRESS, now);
        }
        failures.count(ADDRESS, now).unwrap();
        failures.count(ADDRESS, now).unwrap();
        assert!(!failures.is_first(ADDRESS) && failures.is_first(OTHER));
    }

    #[test]
    fn the_table_of_addresses_has_a_bound() {
        let mut failures = Failures::default();
        let start = Instant::now();
        for index in 0..ADDRESSES_MAX as u32 + 100 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(index));
            failures.count(address, start + Duration::from_micros(u64::from(index))).unwrap();
        }
        assert_eq!(failures.addresses.len(), ADDRESSES_MAX);
    }

    #[test]
    fn one_ipv6_network_is_one_address() {
        assert_eq!(group("2001:db8::1".parse().unwrap()), group("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(group("2001:db8::1".parse().unwrap()), group("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(group("::ffff:192.0.2.1".parse().unwrap()), ADDRESS);
    }
}
