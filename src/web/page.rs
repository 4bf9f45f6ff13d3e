//! GET `/`: the status page, and GET `/assets/…`: what it is made of, built in.
//!
//! The page is a reader of the API like any other: it is sent without data, and its scripts ask for it. Nothing of it is
//! loaded from elsewhere, and its Content-Security-Policy lets nothing in: neither inline scripts and styles nor other
//! hosts. With `embed=1` it is another, smaller page for the frame of a dashboard, which reads the widget route alone.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::access::Access;
use super::answer::{Answer, Failure};
use super::routes::Call;

/// An asset: its name below `/assets/`, its media type, and its content.
type Asset = (&'static str, &'static str, &'static [u8]);

/// What the page names, and nothing else.
const ASSETS: &[Asset] = &[
    ("style.css", "text/css; charset=utf-8", include_bytes!("assets/style.css")),
    ("icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    ("app.js", SCRIPT, include_bytes!("assets/app.js")),
    ("api.js", SCRIPT, include_bytes!("assets/api.js")),
    ("chart.js", SCRIPT, include_bytes!("assets/chart.js")),
    ("dialogs.js", SCRIPT, include_bytes!("assets/dialogs.js")),
    ("dom.js", SCRIPT, include_bytes!("assets/dom.js")),
    ("embed.js", SCRIPT, include_bytes!("assets/embed.js")),
    ("live.js", SCRIPT, include_bytes!("assets/live.js")),
    ("logs.js", SCRIPT, include_bytes!("assets/logs.js")),
    ("notices.js", SCRIPT, include_bytes!("assets/notices.js")),
    ("text.js", SCRIPT, include_bytes!("assets/text.js")),
    ("views.js", SCRIPT, include_bytes!("assets/views.js")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("assets/index.html");
const EMBED: &str = include_str!("assets/embed.html");

/// What a browser lets the page do; which pages may frame it follows.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'self'; form-action 'none'; frame-ancestors ";

/// Hexadecimal digits of a content's hash that name its version.
const VERSION_DIGITS: usize = 16;

/// GET `/`. Below a public path the page names it as its base, so that its addresses hold with and without the slash at
/// the end.
pub fn page(call: &Call<'_>) -> Result<Answer, Failure> {
    let is_embedded = call.request.query_switch("embed")?;
    let (template, ancestors) = if is_embedded { (EMBED, "*") } else { (INDEX, "'none'") };
    let settings = &call.context.settings;
    let html = match &settings.public_url {
        Some(url) if !url.path().is_empty() => {
            template.replace("{base}", &format!("<base href=\"{}\">", call.link("/")))
        }
        _ => template.replace("{base}\n", ""),
    };
    let access = if call.caller.access == Access::Full { "full" } else { "view" };
    let folder = escaped(&settings.config_path.display().to_string());
    let html = html.replace("{access}", access).replace("{config_path}", &folder);
    let answer = versioned(call, "text/html; charset=utf-8", html.into_bytes());
    Ok(answer.with_header("Content-Security-Policy", format!("{POLICY}{ancestors}")))
}

/// GET `/assets/{name}`.
pub fn asset(call: &Call<'_>) -> Result<Answer, Failure> {
    let found = ASSETS.iter().find(|(name, ..)| *name == call.param("name"));
    let (_, kind, content) = found.ok_or_else(|| Failure::not_found("there is no such asset"))?;
    Ok(versioned(call, kind, content.to_vec()))
}

/// Kept by browsers, and asked for again each time: without a body while it is the same, so that a new version of the
/// program is seen at once.
fn versioned(call: &Call<'_>, kind: &str, content: Vec<u8>) -> Answer {
    let tag = tag(&content);
    let known = call.request.header("If-None-Match");
    let is_known = known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let answer = if is_known { Answer::empty(304) } else { Answer::with_content(kind, content) };
    answer
        .with_header("ETag", tag)
        .with_header("Cache-Control", "no-cache")
        .with_header("Referrer-Policy", "no-referrer")
}

fn tag(content: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in &Sha256::digest(content)[..VERSION_DIGITS / 2] {
        // Writing to a string does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

/// As it stands in a quoted attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a browser loads, in bytes.
    const SIZE_MAX: usize = 60_000;

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.2).expect("assets are text")
    }

    #[test]
    fn the_page_is_small() {
        let size: usize = ASSETS.iter().map(|asset| asset.2.len()).sum::<usize>() + INDEX.len() + EMBED.len();
        assert!(size < SIZE_MAX, "{size} bytes");
    }

    #[test]
    fn what_the_page_names_is_there_and_what_is_there_is_named() {
        let mut named: Vec<&str> = Vec::new();
        for html in [INDEX, EMBED] {
            named.extend(html.split("\"assets/").skip(1).filter_map(|rest| rest.split('"').next()));
        }
        for script in ASSETS.iter().filter(|asset| asset.1 == SCRIPT) {
            named.extend(text(script).split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()));
        }
        named.sort_unstable();
        named.dedup();
        let mut there: Vec<&str> = ASSETS.iter().map(|asset| asset.0).collect();
        there.sort_unstable();
        assert_eq!(named, there);
    }

    #[test]
    fn nothing_is_written_as_markup_or_inline() {
        for asset in ASSETS.iter().filter(|asset| asset.1 == SCRIPT) {
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
                assert!(!text(asset).contains(word), "{}: {word}", asset.0);
            }
        }
        for html in [INDEX, EMBED] {
            for word in ["<style", " style=", " onclick=", " onload=", "<script>", "http:", "https:"] {
                assert!(!html.contains(word), "{word}");
            }
        }
    }

    #[test]
    fn a_folder_in_an_attribute_stays_in_it() {
        assert_eq!(escaped("/a \"b\" <c> & d"), "/a &quot;b&quot; &lt;c&gt; &amp; d");
        assert_eq!(tag(b"").len(), VERSION_DIGITS + 2);
    }
}
