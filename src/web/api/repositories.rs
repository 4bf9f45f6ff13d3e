//! One repository: what it is, and the trigger that deploys it.

use jiff::Timestamp;

use super::{find_repository, json};
use crate::model::{Asked, By, CommitPrefix, Trigger};
use crate::web::ListenerKind;
use crate::web::answer::{Answer, Failure};
use crate::web::routes::Call;

/// GET `/api/repositories/{id}`.
pub fn repository(call: &Call<'_>) -> Result<Answer, Failure> {
    Ok(Answer::json(&json::Repository::from(&find_repository(call)?)))
}

/// POST `/api/repositories/{id}/deploy`: accepted means committed to the database.
pub fn deploy(call: &Call<'_>) -> Result<Answer, Failure> {
    let record = find_repository(call)?;
    let asked = parse_asked(call.body)?;
    if record.orphaned_at.is_some() {
        return Err(Failure::conflict(format!("{} is orphaned: no project file names it any more", record.name)));
    }
    let trigger = match call.request.listener {
        ListenerKind::Control => Trigger::Cli,
        ListenerKind::Tcp => Trigger::Api,
    };
    let by = By { trigger, actor: call.caller.actor.clone() };
    let queued = call.context.store.enqueue(record.id, by, asked, Timestamp::now())?;
    log::info!("{}: deploy asked by {} (deployment {})", record.name, call.asked_by(), queued.deployment_id);
    call.context.daemon.wake_worker();
    let id = queued.deployment_id;
    let answer = Answer::json(&serde_json::json!({ "deployment_id": id, "status": "pending" }));
    Ok(answer.with_status(202).with_header("Location", call.link(&format!("/api/deployments/{id}"))))
}

/// What a body asks for; none asks for nothing.
fn parse_asked(body: &[u8]) -> Result<Asked, Failure> {
    let mut asked = Asked::default();
    if body.trim_ascii().is_empty() {
        return Ok(asked);
    }
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).map_err(|error| {
        Failure::bad_request(format!("the body must be a JSON object such as {{\"pull\": true}}: {error}"))
    })?;
    for (field, value) in fields {
        let flag = match field.as_str() {
            "pull" => &mut asked.pull,
            "recreate" => &mut asked.recreate,
            "adopt" => &mut asked.adopt,
            "commit" => {
                asked.commit = Some(parse_commit(&value)?);
                continue;
            }
            _ => {
                let message = format!("there is no `{field}`: `pull`, `recreate`, `adopt` and `commit` are known");
                return Err(Failure::bad_request(message));
            }
        };
        *flag = value.as_bool().ok_or_else(|| Failure::bad_request(format!("`{field}` must be true or false")))?;
    }
    Ok(asked)
}

fn parse_commit(value: &serde_json::Value) -> Result<CommitPrefix, Failure> {
    value.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::bad_request(
            "`commit` must be the hash of a commit, or its beginning: a text of 7 to 64 hexadecimal digits",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_asks_for_what_it_names() {
        let asked = |body: &str| parse_asked(body.as_bytes()).ok();
        assert_eq!(asked(""), Some(Asked::default()));
        assert_eq!(asked(" \n"), Some(Asked::default()));
        assert_eq!(asked("{}"), Some(Asked::default()));
        assert_eq!(asked(r#"{"pull": true, "recreate": false}"#), Some(Asked { pull: true, ..Asked::default() }));
        let back = Asked { adopt: true, commit: "abcdef0".parse().ok(), ..Asked::default() };
        assert!(back.commit.is_some());
        assert_eq!(asked(r#"{"adopt": true, "commit": "ABCDEF0"}"#), Some(back));
        for body in [
            "[]",
            "{",
            "null",
            r#"{"pull": 1}"#,
            r#"{"pul": true}"#,
            r#"{"adopt": "yes"}"#,
            r#"{"commit": "abcdef"}"#,
            r#"{"commit": "main"}"#,
            r#"{"commit": true}"#,
            r#"{"commit": null}"#,
        ] {
            assert_eq!(asked(body), None, "{body}");
        }
    }
}
