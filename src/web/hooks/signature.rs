//! What tells that a delivery is from somebody who has the secret.

use std::borrow::Cow;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secrets::Secret;
use crate::web::request::{Request, form_field};

/// The field of a form that holds the payload.
const FORM_FIELD: &str = "payload";

/// How a provider signs.
#[derive(Clone, Copy, Debug)]
pub enum Signature {
    /// HMAC-SHA256 in hexadecimal digits.
    Hmac {
        /// The header that has it.
        header: &'static str,
        /// What stands before the digits.
        prefix: &'static str,
        /// What it is of, where the payload comes as a field of a form.
        form: SignedForm,
    },
    /// The secret itself.
    Token {
        /// The header that has it.
        header: &'static str,
    },
}

/// What the signature of a form is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedForm {
    /// The body, as of anything else.
    Body,
    /// The payload before it was put into the form, as Gitea, Forgejo and Gogs do it.
    Payload,
}

/// A payload that somebody who has the secret sent; none: nobody knows who did. Of the body nothing is parsed before its
/// signature was found right; but for a form whose payload alone is signed, which is taken out of the form first.
pub fn signed_payload<'a>(
    signature: Signature,
    secret: &Secret,
    request: &Request,
    body: &'a [u8],
) -> Option<Cow<'a, [u8]>> {
    let is_form = !is_object(body) && request.header("Content-Type").is_some_and(is_form);
    let field = || is_form.then(|| form_field(body, FORM_FIELD)).flatten().map(Cow::Owned);
    // Some clients call everything a form: what has no such field is taken as it is.
    let payload = || field().unwrap_or(Cow::Borrowed(body));
    match signature {
        Signature::Token { header } => is_same(secret, request.header(header)?).then(payload),
        Signature::Hmac { header, prefix, form } => {
            let digits = request.header(header)?.trim().strip_prefix(prefix)?;
            if is_hmac(secret, body, digits) {
                return Some(payload());
            }
            let signed = field().filter(|_| form == SignedForm::Payload)?;
            is_hmac(secret, &signed, digits).then_some(signed)
        }
    }
}

fn is_form(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Whether it begins as JSON does, which no form of a forge does. The type of a body is not signed: called a form, a
/// signed payload would be whatever the commit message inside it says after `&payload=`.
fn is_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// Whether `digits` are the HMAC-SHA256 of `text`, in either case; in constant time.
fn is_hmac(secret: &Secret, text: &[u8], digits: &str) -> bool {
    let (Some(given), Ok(mut mac)) = (decoded(digits), Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()))
    else {
        return false;
    };
    mac.update(text);
    mac.verify_slice(&given).is_ok()
}

/// Compared as hashes, so that the time tells nothing of the secret's length either.
fn is_same(secret: &Secret, given: &str) -> bool {
    Sha256::digest(secret.expose()).ct_eq(&Sha256::digest(given)).into()
}

fn decoded(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |index: usize| char::from(pair[index]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of GitHub's documentation.
    const DIGITS: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn the_vector_that_github_documents_is_right_in_either_case() {
        let secret = Secret::new("It's a Secret to Everybody");
        for digits in [DIGITS.to_owned(), DIGITS.to_uppercase()] {
            assert!(is_hmac(&secret, b"Hello, World!", &digits), "{digits}");
        }
        assert!(!is_hmac(&secret, b"Hello, World.", DIGITS));
        assert!(!is_hmac(&Secret::new("It's no Secret"), b"Hello, World!", DIGITS));
        let wrong = [
            "",
            "0",
            &DIGITS[2..],
            &format!("{DIGITS}00"),
            &format!("sha256={DIGITS}"),
            &DIGITS.replacen('7', "8", 1),
            &DIGITS.replacen("75", "+7", 1),
            &DIGITS.replacen("75", "é", 1),
        ];
        for digits in wrong {
            assert!(!is_hmac(&secret, b"Hello, World!", digits), "{digits}");
        }
    }

    #[test]
    fn a_token_is_the_whole_secret() {
        let secret = Secret::new("open sesame");
        assert!(is_same(&secret, "open sesame"));
        for given in ["", "open", "open sesame ", "Open sesame"] {
            assert!(!is_same(&secret, given), "{given}");
        }
    }

    #[test]
    fn forms_are_told_by_their_type() {
        for kind in ["application/x-www-form-urlencoded", "Application/X-WWW-Form-Urlencoded; charset=utf-8"] {
            assert!(is_form(kind), "{kind}");
        }
        assert!(!is_form("application/json") && !is_form(""));
    }
}
