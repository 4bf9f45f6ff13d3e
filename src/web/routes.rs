//! Which function answers which route.
//!
//! Everything of spec section 5 is in [`ROUTES`], with what a caller must be allowed to ask for it. A repository's
//! routes exist twice, under its id and under project and name. HEAD is GET without a body; a wrong method is answered
//! 405 with what the table has.
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
//! | POST `/control/hold` | none | 200, a stream: a line `{"running": ["home/web, deployment 7", …], "ends_within_seconds": 900}` each time when what runs changes, until that is empty. No deployment begins until the client goes, or an hour after the last has ended |
//! | POST `/control/release` | `{"id": 3}` | 200 `{"released": "root"}`: who was told to let go; null where it is in nobody's hands |
//! | POST `/control/notify-test` | `{"repository": "project/name"}` or `{}` | 200 `{"results": [{"repository": "project/name", "target": "discord", "problem": "…" or null}, …]}`; takes as long as the notifiers do; 404 for a repository that is not configured |

use std::sync::Arc;

use super::access::{Access, Caller};
use super::answer::{Answer, Failure, Reply};
use super::request::{Method, Request};
use super::{Context, ListenerKind, api, events, health, hooks, metrics, openapi, page, widget};
use crate::config::PublicUrl;

/// A request with everything that a route may need.
pub struct Call<'a> {
    /// The rest of the program.
    pub context: &'a Arc<Context>,
    /// The request.
    pub request: &'a Request,
    /// Its body.
    pub body: &'a [u8],
    /// Who sent it, and may do at least what the route needs.
    pub caller: &'a Caller,
    params: Vec<(&'static str, &'a str)>,
}

impl Call<'_> {
    /// A part of the path that the route's pattern names; empty where it has none of that name.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// A path of ours as clients reach it, with that of the public URL in front.
    pub fn link(&self, path: &str) -> String {
        format!("{}{path}", self.context.settings.public_url.as_ref().map_or("", PublicUrl::path))
    }

    /// Who asks, for the log: a name, an address, or both.
    pub fn asked_by(&self) -> String {
        match (&self.caller.actor, self.request.client) {
            (Some(actor), Some(address)) => format!("{actor} from {address}"),
            (Some(actor), None) => actor.clone(),
            (None, Some(address)) => address.to_string(),
            (None, None) => "somebody unknown".to_owned(),
        }
    }
}

type Handler = fn(&Call<'_>) -> Result<Reply, Failure>;

/// Wraps a function that answers at once.
macro_rules! now {
    ($function:path) => {
        |call| $function(call).map(Reply::from)
    };
}

const ROUTES: &[(Method, &str, Access, Handler)] = &[
    (Method::Get, "/", Access::View, now!(page::page)),
    (Method::Get, "/assets/{name}", Access::Widget, now!(page::asset)),
    (Method::Get, "/api/health", Access::Open, now!(health::health)),
    (Method::Get, "/api/summary", Access::View, now!(api::summary::summary)),
    (Method::Get, "/api/projects", Access::View, now!(api::projects)),
    (Method::Get, "/api/projects/{project}", Access::View, now!(api::project)),
    (Method::Get, "/api/projects/{project}/repositories", Access::View, now!(api::repositories_of_project)),
    (Method::Get, "/api/repositories", Access::View, now!(api::all_repositories)),
    (Method::Get, "/api/deployments", Access::View, now!(api::deployments::deployments)),
    (Method::Get, "/api/deployments/{id}", Access::View, now!(api::deployments::deployment)),
    (Method::Get, "/api/deployments/{id}/logs", Access::View, api::deployments::logs),
    (Method::Post, "/api/deployments/{id}/cancel", Access::Full, now!(api::cancel::cancel)),
    (Method::Get, "/api/events", Access::View, now!(events::events)),
    (Method::Get, "/api/openapi.json", Access::View, now!(openapi::openapi)),
    (Method::Get, "/containers/{id}/logs", Access::Full, api::containers::container_logs),
    (Method::Get, "/metrics", Access::View, now!(metrics::metrics)),
    (Method::Post, "/webhook/{provider}", Access::Open, now!(hooks::webhook)),
    (Method::Get, "/widget/dashy", Access::Widget, now!(widget::dashy)),
    (Method::Options, "/widget/dashy", Access::Open, now!(widget::preflight)),
    (Method::Get, "/widget/dashy/list", Access::Widget, now!(widget::dashy_list)),
    (Method::Options, "/widget/dashy/list", Access::Open, now!(widget::preflight)),
];

/// Under each of [`REPOSITORY_PREFIXES`].
const REPOSITORY_ROUTES: &[(Method, &str, Access, Handler)] = &[
    (Method::Get, "", Access::View, now!(api::repositories::repository)),
    (Method::Get, "/health", Access::View, now!(api::summary::health)),
    (Method::Get, "/deployments", Access::View, now!(api::deployments::of_repository)),
    (Method::Get, "/logs", Access::Full, api::containers::stack_logs),
    (Method::Get, "/containers", Access::View, api::containers::of_stack),
    (Method::Post, "/deploy", Access::Full, now!(api::repositories::deploy)),
];
/// A repository by its id, and by the names of project and repository.
pub const REPOSITORY_PREFIXES: [&str; 2] = ["/api/repositories/{id}", "/api/projects/{project}/repositories/{name}"];

/// On the control socket only.
const CONTROL_ROUTES: &[(Method, &str, Access, Handler)] = &[
    (Method::Post, "/control/prune", Access::Full, now!(api::control::prune)),
    (Method::Post, "/control/check", Access::Full, now!(api::control::check)),
    (Method::Post, "/control/compose", Access::Full, api::control::compose),
    (Method::Post, "/control/hold", Access::Full, api::control::hold),
    (Method::Post, "/control/release", Access::Full, now!(api::control::release)),
    (Method::Post, "/control/notify-test", Access::Full, api::control::notify_test),
];

/// What stands for a route in the metrics where there is none.
pub const NO_ROUTE: (&str, &str) = ("none", "");

/// Answers a request that the rules let through.
///
/// # Errors
/// The route's, 404 and 405.
pub fn route(context: &Arc<Context>, request: &Request, body: &[u8], caller: &Caller) -> Result<Reply, Failure> {
    if caller.access < needed(request) {
        return Err(forbidden(request));
    }
    if request.lacks_slash && request.method == Method::Get {
        return Ok(Answer::empty(308).with_header("Location", request.with_slash()).into());
    }
    let path = request.path();
    let mut allowed: Vec<Method> = Vec::new();
    for route in table(request.listener) {
        let Some(params) = matches(route.prefix, route.rest, &path) else { continue };
        if route.method == request.method {
            return (route.handler)(&Call { context, request, body, caller, params });
        }
        allowed.push(route.method);
    }
    if allowed.is_empty() {
        return Err(Failure::not_found("there is no such route"));
    }
    let names: Vec<&str> = allowed.iter().map(|method| name_of(*method)).collect();
    let failure = Failure::new(405, "method_not_allowed", "this route has another method: see the Allow header");
    Err(failure.with_header("Allow", names.join(", ")))
}

/// What a request needs. One that no route answers needs as much as others of its method, so that nobody learns from the
/// outside which routes there are.
pub fn needed(request: &Request) -> Access {
    let path = request.path();
    let is_preflight = request.method == Method::Options && request.header("Access-Control-Request-Method").is_some();
    if is_preflight || matches!(path.as_slice(), ["webhook", _]) {
        return Access::Open;
    }
    let answers = |route: &Route| route.method == request.method && matches(route.prefix, route.rest, &path).is_some();
    if path == [""] && matches!(request.query_switch("embed"), Ok(true)) {
        // The page in a dashboard's frame shows what widgets do.
        return Access::Widget;
    }
    match table(request.listener).find(answers) {
        Some(route) => route.access,
        None if request.method.writes() => Access::Full,
        None => Access::View,
    }
}

/// Whether somebody who is known gets more than everybody does.
pub fn tells_more(request: &Request) -> bool {
    request.segments.iter().map(String::as_str).eq(["api", "health"])
}

fn forbidden(request: &Request) -> Failure {
    let what = if request.method.writes() { "change anything" } else { "read the logs of containers" };
    Failure::forbidden("forbidden", format!("this user may look, and not {what}: it takes Shiparr_AUTH_USERNAME"))
}

/// Whether a request brings its authentication in its body: neither rules nor credentials are looked at before that.
pub fn is_webhook(request: &Request) -> bool {
    request.method == Method::Post && matches!(request.segments.as_slice(), [first, _] if first == "webhook")
}

/// The pattern of a request's route, in two pieces that follow each other: for the metrics, which know no path.
pub fn pattern(request: &Request) -> (&'static str, &'static str) {
    let path = request.path();
    let route = table(request.listener).find(|route| matches(route.prefix, route.rest, &path).is_some());
    route.map_or(NO_ROUTE, |route| (route.prefix, route.rest))
}

/// All routes that are served over TCP: method, pattern, and what a caller must be allowed to ask for it.
pub fn served() -> impl Iterator<Item = (Method, String, Access)> {
    table(ListenerKind::Tcp).map(|route| (route.method, format!("{}{}", route.prefix, route.rest), route.access))
}

/// Adds what a dashboard's browser needs to read any answer of the widget routes, errors too.
pub fn decorate(request: &Request, answer: Answer) -> Answer {
    if request.segments.first().is_some_and(|first| first == "widget") { widget::allow_origins(answer) } else { answer }
}

/// A row of the tables.
struct Route {
    method: Method,
    prefix: &'static str,
    /// What follows the prefix.
    rest: &'static str,
    access: Access,
    handler: Handler,
}

fn table(listener: ListenerKind) -> impl Iterator<Item = Route> {
    let control = if listener == ListenerKind::Control { CONTROL_ROUTES } else { &[] };
    let row = |prefix: Option<&'static str>, (method, pattern, access, handler): &'static (_, _, _, Handler)| {
        let (prefix, rest) = prefix.map_or((*pattern, ""), |prefix| (prefix, *pattern));
        Route { method: *method, prefix, rest, access: *access, handler: *handler }
    };
    let plain = ROUTES.iter().chain(control).map(move |route| row(None, route));
    let repository = REPOSITORY_PREFIXES
        .into_iter()
        .flat_map(move |prefix| REPOSITORY_ROUTES.iter().map(move |route| row(Some(prefix), route)));
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
