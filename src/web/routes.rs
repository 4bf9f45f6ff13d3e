//! Which function answers which route.
//!
//! Everything of spec section 5 is in [`ROUTES`]. A repository's routes exist twice, under its id and under project and
//! name. HEAD is GET without a body; a wrong method is answered 405 with what the table has.
//!
//! # The control socket
//!
//! Over the control socket everything is served that TCP serves, without authentication; a deployment that is asked for
//! there has the trigger `cli`. Beside that, with bodies and answers in JSON:
//!
//! | route | body | answer |
//! |---|---|---|
//! | POST `/control/prune` | `{"ids": [3, 4]}`: repositories (`orphaned` in `GET /api/repositories`) | 200 `{"forgotten": ["project/name", …]}`; 409, and nothing is forgotten, where one is no orphan or is still being deployed: the message names it |
//! | POST `/control/check` | `{"id": 3}` | 204: the repository is checked now |
//! | POST `/control/compose` | `{"id": 3, "who": "root"}` | 200, a stream: one line of JSON, an object with `program`, `arguments` (up to the verb), `environment`, `folder`, `files`, `variables` (`[{"name", "from"}]`), `dotenv` (their values, as an env file) and `variables_file` (the argument in whose place that file goes, or null). The stack is in these hands, and its deployments wait, until the client goes; where the daemon ends it there is a second line, `{"end": "why"}`, and the client has 15 s to go. 409 with the reason where it cannot be had |
//! | POST `/control/release` | `{"id": 3}` | 200 `{"released": "root"}`: who was told to let go; null where it is in nobody's hands |
//! | POST `/control/notify-test` | `{"repository": "project/name"}` or `{}` | 200 `{"results": [{"repository": "project/name", "target": "discord", "problem": "…" or null}, …]}`; takes as long as the notifiers do; 404 for a repository that is not configured |

use std::sync::Arc;

use super::answer::{Answer, Failure, Reply};
use super::request::{Method, Request};
use super::{Context, ListenerKind, api, health, page, widget};

/// A request with everything that a route may need.
pub struct Call<'a> {
    /// The rest of the program.
    pub context: &'a Arc<Context>,
    /// The request.
    pub request: &'a Request,
    /// Its body.
    pub body: &'a [u8],
    /// Whether the client has the rights of one who logged in.
    pub is_trusted: bool,
    params: Vec<(&'static str, &'a str)>,
}

impl Call<'_> {
    /// A part of the path that the route's pattern names; empty where it has none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

type Handler = fn(&Call<'_>) -> Result<Reply, Failure>;

/// Wraps a function that answers at once.
macro_rules! now {
    ($function:path) => {
        |call| $function(call).map(Reply::from)
    };
}

const ROUTES: &[(Method, &str, Handler)] = &[
    (Method::Get, "/", now!(page::page)),
    (Method::Get, "/assets/{name}", now!(page::asset)),
    (Method::Get, "/api/health", now!(health::health)),
    (Method::Get, "/api/projects", now!(api::projects)),
    (Method::Get, "/api/projects/{project}", now!(api::project)),
    (Method::Get, "/api/projects/{project}/repositories", now!(api::repositories_of_project)),
    (Method::Get, "/api/repositories", now!(api::all_repositories)),
    (Method::Get, "/api/deployments", now!(api::deployments::deployments)),
    (Method::Get, "/api/deployments/{id}", now!(api::deployments::deployment)),
    (Method::Get, "/api/deployments/{id}/logs", api::deployments::logs),
    (Method::Post, "/api/deployments/{id}/cancel", now!(api::cancel::cancel)),
    (Method::Get, "/containers/{id}/logs", api::containers::container_logs),
    (Method::Get, "/widget/dashy", now!(widget::dashy)),
    (Method::Options, "/widget/dashy", now!(widget::preflight)),
];

/// Under each of [`REPOSITORY_PREFIXES`].
const REPOSITORY_ROUTES: &[(Method, &str, Handler)] = &[
    (Method::Get, "", now!(api::repositories::repository)),
    (Method::Get, "/deployments", now!(api::deployments::of_repository)),
    (Method::Get, "/logs", api::containers::stack_logs),
    (Method::Get, "/containers", api::containers::of_stack),
    (Method::Post, "/deploy", now!(api::repositories::deploy)),
];
const REPOSITORY_PREFIXES: [&str; 2] = ["/api/repositories/{id}", "/api/projects/{project}/repositories/{name}"];

/// On the control socket only.
const CONTROL_ROUTES: &[(Method, &str, Handler)] = &[
    (Method::Post, "/control/prune", now!(api::control::prune)),
    (Method::Post, "/control/check", now!(api::control::check)),
    (Method::Post, "/control/compose", api::control::compose),
    (Method::Post, "/control/release", now!(api::control::release)),
    (Method::Post, "/control/notify-test", api::control::notify_test),
];

/// Answers a request that the rules let through.
///
/// # Errors
/// The route's, 404 and 405.
pub fn route(context: &Arc<Context>, request: &Request, body: &[u8], is_trusted: bool) -> Result<Reply, Failure> {
    let path: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    let mut allowed: Vec<Method> = Vec::new();
    for (method, prefix, rest, handler) in table(request.listener) {
        let Some(params) = matches(prefix, rest, &path) else { continue };
        if method == request.method {
            return handler(&Call { context, request, body, is_trusted, params });
        }
        allowed.push(method);
    }
    if allowed.is_empty() {
        return Err(Failure::not_found("there is no such route"));
    }
    let names: Vec<&str> = allowed.iter().map(|method| name_of(*method)).collect();
    let failure = Failure::new(405, "method_not_allowed", "this route has another method: see the Allow header");
    Err(failure.with_header("Allow", names.join(", ")))
}

/// Whether a path asks for no credentials: the webhooks' signature is theirs, and a preflight carries none.
pub fn is_open(request: &Request) -> bool {
    match request.segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["api", "health"] | ["webhook", _] => true,
        _ => request.method == Method::Options && request.header("Access-Control-Request-Method").is_some(),
    }
}

/// Adds what a dashboard's browser needs to read any answer of the widget routes, errors too.
pub fn decorate(request: &Request, answer: Answer) -> Answer {
    if request.segments.first().is_some_and(|first| first == "widget") { widget::allow_origins(answer) } else { answer }
}

fn table(listener: ListenerKind) -> impl Iterator<Item = (Method, &'static str, &'static str, Handler)> {
    let control = if listener == ListenerKind::Control { CONTROL_ROUTES } else { &[] };
    let plain = ROUTES.iter().chain(control).map(|(method, pattern, handler)| (*method, *pattern, "", *handler));
    let repository = REPOSITORY_PREFIXES.into_iter().flat_map(|prefix| {
        REPOSITORY_ROUTES.iter().map(move |(method, rest, handler)| (*method, prefix, *rest, *handler))
    });
    plain.chain(repository)
}

fn name_of(method: Method) -> &'static str {
    match method {
        Method::Get => "GET, HEAD",
        Method::Post => "POST",
        Method::Options => "OPTIONS",
        Method::Other => "",
    }
}

/// What the named parts of a pattern (given in two pieces) are in a path, if the path is of that pattern.
fn matches<'a>(prefix: &'static str, rest: &'static str, path: &[&'a str]) -> Option<Vec<(&'static str, &'a str)>> {
    let mut parts = prefix.split('/').skip(1).chain(rest.split('/').skip(1));
    let mut params = Vec::new();
    for segment in path {
        let part = parts.next()?;
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(_) if segment.is_empty() => return None,
            Some(name) => params.push((name, *segment)),
            None if part == *segment => {}
            None => return None,
        }
    }
    parts.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_paths() {
        let params = matches("/api/repositories/{id}", "/deploy", &["api", "repositories", "7", "deploy"]);
        assert_eq!(params, Some(vec![("id", "7")]));
        assert_eq!(matches("/api/projects", "", &["api", "projects"]), Some(Vec::new()));
        for path in [&["api"] as &[&str], &["api", "projects", ""], &["api", "projects", "x"], &["", "api", "projects"]]
        {
            assert_eq!(matches("/api/projects", "", path), None, "{path:?}");
        }
        assert_eq!(matches("/api/projects/{project}", "", &["api", "projects", ""]), None);
    }
}
