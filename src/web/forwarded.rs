//! What a reverse proxy in front says, and how far it is believed.
//!
//! `X-Forwarded-For` alone is read, and only from `Shiparr_TRUSTED_PROXIES`. `X-Forwarded-Host` and `X-Forwarded-Proto`
//! are not: `Shiparr_PUBLIC_URL` says what they could, and nobody can send a setting. `Forwarded` is not read either: a
//! proxy that writes `X-Forwarded-For` passes on a client's `Forwarded` as it came.

use std::net::{IpAddr, SocketAddr};

use crate::config::Network;

/// The client's address: that of the connection, unless it belongs to a proxy that is trusted, which then names whom it
/// heard, and so on while those are trusted too. `lines` are the header lines in their order; what stands further left
/// is older, and anybody may have written it.
pub fn client_address<'a>(
    peer: IpAddr,
    lines: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[Network],
) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut known = peer.to_canonical();
    for hop in lines.rev().flat_map(|line| line.rsplit(',')) {
        if !is_trusted(known) {
            break;
        }
        // What is no address ends the chain: the last one who was named said it.
        let Some(address) = address_of(hop.trim()) else { break };
        known = address;
    }
    known
}

/// An address, perhaps with a port, perhaps in brackets.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str], trusted: &[&str]) -> String {
        let trusted: Vec<Network> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        client_address(peer.parse().unwrap(), lines.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let proxy = &["10.0.0.1"];
        assert_eq!(client("10.0.0.1", &["192.0.2.7"], proxy), "192.0.2.7");
        assert_eq!(client("10.0.0.2", &["192.0.2.7"], proxy), "10.0.0.2");
        assert_eq!(client("10.0.0.1", &["192.0.2.7"], &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[], proxy), "10.0.0.1");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:192.0.2.7"], proxy), "192.0.2.7");
    }

    #[test]
    fn the_rightmost_who_is_not_trusted_is_the_client() {
        let proxies = &["10.0.0.0/8", "fd00::/8"];
        // What the client wrote itself stands further left.
        assert_eq!(client("10.0.0.1", &["127.0.0.1, 10.0.0.9, 192.0.2.7"], proxies), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["192.0.2.7, 10.0.0.9 ,fd00::5"], proxies), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["198.51.100.1", "192.0.2.7", "10.0.0.9"], proxies), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["10.0.0.8, 10.0.0.9"], proxies), "10.0.0.8");
    }

    #[test]
    fn ports_and_brackets_are_read_and_nonsense_ends_the_chain() {
        let proxy = &["10.0.0.1", "10.0.0.9"];
        for (line, expected) in [
            ("192.0.2.7:51234", "192.0.2.7"),
            ("[2001:db8::7]:51234", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("unknown", "10.0.0.1"),
            ("_hidden", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("192.0.2.7,", "10.0.0.1"),
            ("192.0.2.7, unknown, 10.0.0.9", "10.0.0.9"),
            ("192.0.2.7:port", "10.0.0.1"),
            ("192.0.2.7\"", "10.0.0.1"),
            ("999.0.2.7", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[line], proxy), expected, "{line}");
        }
        let long = "1.2.3.4,".repeat(2000) + "192.0.2.7";
        assert_eq!(client("10.0.0.1", &[&long], proxy), "192.0.2.7");
    }
}
