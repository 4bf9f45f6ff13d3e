//! The status page as a browser gets it: headers, versions, and what it says about who asks.

use super::*;

const ENABLED: [(&str, &str); 2] = [("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")];

#[test]
fn browsers_keep_the_assets_and_ask_whether_they_are_the_same() {
    let scene = Scene::new();
    let first = scene.get("/assets/app.js");
    assert_eq!((first.status, first.header("content-type")), (200, Some("text/javascript; charset=utf-8")));
    assert_eq!(
        (first.header("cache-control"), first.header("x-content-type-options")),
        (Some("no-cache"), Some("nosniff"))
    );
    let tag = first.header("etag").expect("it has a tag").to_owned();
    for known in [tag.clone(), format!("\"other\", W/{tag}")] {
        let again = scene.ask("GET", "/assets/app.js", &[&format!("If-None-Match: {known}")], "");
        assert_eq!((again.status, again.body.as_str(), again.header("etag")), (304, "", Some(tag.as_str())), "{known}");
    }
    assert_eq!(scene.ask("GET", "/assets/app.js", &["If-None-Match: \"other\""], "").status, 200);
    for path in ["/assets/nothing.js", "/assets/", "/assets/..%2Fpage.rs"] {
        assert_eq!(scene.get(path).status, 404, "{path}");
    }
}

#[test]
fn the_page_lets_nothing_in_and_only_the_embedded_one_into_frames() {
    let scene = Scene::new();
    let page = scene.get("/");
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert!(page.body.contains("data-access=\"full\"") && !page.body.contains('{') && !page.body.contains("<base"));
    let embedded = scene.get("/?project=home&embed=1");
    assert!(embedded.header("content-security-policy").is_some_and(|policy| policy.ends_with("frame-ancestors *")));
    assert!(!embedded.body.contains("data-config-path") && !embedded.body.contains('{'));
    assert_eq!(scene.get("/?embed=perhaps").status, 400);
}

#[test]
fn below_a_public_path_everything_is_found_from_there() {
    let scene = Scene::with(&[("Shiparr_PUBLIC_URL", "https://host.example.com/shiparr")]);
    for path in ["/", "/shiparr/", "/?project=home&embed=1"] {
        assert!(scene.get(path).body.contains("<base href=\"/shiparr/\">"), "{path}");
    }
    assert_eq!((scene.get("/assets/app.js").status, scene.get("/shiparr/assets/app.js").status), (200, 200));
}

#[test]
fn a_viewer_is_told_apart_and_frames_need_no_login_while_widgets_are_public() {
    let scene = Scene::with(&[&ENABLED[..], &[("Shiparr_VIEWER_PASSWORD", "look")]].concat());
    for path in ["/", "/?project=home&embed=1", "/assets/app.js"] {
        assert_eq!(scene.get(path).status, 401, "{path}");
    }
    for (login, access) in [(basic("viewer", "look"), "view"), (basic("admin", "open sesame"), "full")] {
        let page = scene.ask("GET", "/", &[&login], "");
        assert!(page.body.contains(&format!("data-access=\"{access}\"")), "{}", page.body);
    }
    let scene = Scene::with(&[&ENABLED[..], &[("Shiparr_WIDGET_PUBLIC", "true")]].concat());
    assert_eq!(scene.get("/").status, 401);
    for path in ["/?project=home&embed=1", "/assets/embed.js", "/widget/dashy?project=home"] {
        assert_eq!(scene.get(path).status, 200, "{path}");
    }
}
