//! Passwords and the hashes that they are compared with.

use argon2::{Argon2, PasswordHash, PasswordVerifier};

/// Whether what is stored is a hash rather than the password itself.
pub fn is_hash(stored: &str) -> bool {
    stored.starts_with("$argon2") || is_bcrypt(stored)
}

/// Whether a password has this hash. Takes as long as the hash was made to take.
pub fn matches_hash(stored: &str, given: &str) -> bool {
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
        log::error!("a password hash in the settings cannot be used: {problem}");
        false
    })
}

fn is_bcrypt(stored: &str) -> bool {
    ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| stored.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_both_kinds_tell_right_from_wrong() {
        let bcrypt = bcrypt::hash("geheim", 4).unwrap();
        let salt = argon2::password_hash::SaltString::from_b64("c29tZXNhbHQ").unwrap();
        let cheap = Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            argon2::Params::new(64, 1, 1, None).unwrap(),
        );
        let argon2 = argon2::PasswordHasher::hash_password(&cheap, b"geheim", &salt).unwrap().to_string();
        for stored in [bcrypt, argon2] {
            assert!(is_hash(&stored) && matches_hash(&stored, "geheim"));
            assert!(!matches_hash(&stored, "Geheim") && !matches_hash(&stored, ""));
        }
        assert!(!matches_hash("$argon2id$nonsense", "x") && !is_hash("$money"));
    }
}
