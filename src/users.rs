//! Users and groups of this host, as its own files have them (passwd(5), group(5)): those that a directory service adds
//! are not known here.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";
/// Bytes of each that are read at most.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// A user of this host.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub id: u32,
    /// Numbers of its groups, its own first.
    pub groups: Vec<u32>,
    /// Its home.
    pub home: PathBuf,
}

impl User {
    /// The user of this name, if there is one.
    pub fn named(name: &str) -> Option<User> {
        User::find(name, &read(USERS), &read(GROUPS))
    }

    fn find(name: &str, users: &str, groups: &str) -> Option<User> {
        let user = users.lines().map(fields).find(|fields| fields[0] == name)?;
        let own = user.get(3)?.parse().ok();
        let is_member = |fields: &Vec<&str>| fields.get(3).is_some_and(|them| them.split(',').any(|one| one == name));
        let further = groups.lines().map(fields).filter(is_member).filter_map(|fields| fields.get(2)?.parse().ok());
        Some(User {
            id: user.get(2)?.parse().ok()?,
            groups: own.into_iter().chain(further).collect(),
            home: Path::new(user.get(5)?).to_owned(),
        })
    }
}

/// The name of a user.
pub fn user_name(id: u32) -> Option<String> {
    name_in(&read(USERS), id)
}

/// The name of a group.
pub fn group_name(id: u32) -> Option<String> {
    name_in(&read(GROUPS), id)
}

/// The number of a group.
pub fn group_id(name: &str) -> Option<u32> {
    id_in(&read(GROUPS), name)
}

/// `name:password:number:…`, a line each, in both files.
fn name_in(text: &str, id: u32) -> Option<String> {
    let found = text.lines().map(fields).find(|fields| number(fields) == Some(id) && !fields[0].is_empty())?;
    Some(found[0].to_owned())
}

fn id_in(text: &str, name: &str) -> Option<u32> {
    number(&text.lines().map(fields).find(|fields| fields[0] == name)?)
}

fn number(fields: &[&str]) -> Option<u32> {
    fields.get(2)?.parse().ok()
}

/// One at least.
fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

/// Nothing where it cannot be read.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(path) {
        // What came before an error counts.
        let _ = file.take(MAX_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME_USERS: &str =
        "root:x:0:0:root:/root:/bin/sh\n\n::1:\nshiparr:x:997:996:Shiparr:/var/lib/shiparr:/sbin/nologin\nlast:x";
    const SOME_GROUPS: &str =
        "root:x:0:\nshiparr-x:x:5:\nshiparr:x:996:ann\ndocker:x:102:ann,shiparr\nother:x:103:shiparrs\n";

    #[test]
    fn a_user_has_its_own_group_and_those_that_list_it() {
        let user = User::find("shiparr", SOME_USERS, SOME_GROUPS).unwrap();
        assert_eq!(user, User { id: 997, groups: vec![996, 102], home: "/var/lib/shiparr".into() });
        assert_eq!(["nobody", "last"].map(|name| User::find(name, SOME_USERS, SOME_GROUPS)), [None, None]);
    }

    #[test]
    fn names_and_numbers_lead_to_each_other() {
        assert_eq!([0, 997].map(|id| name_in(SOME_USERS, id).unwrap()), ["root", "shiparr"]);
        assert_eq!([1, 99].map(|id| name_in(SOME_USERS, id)), [None, None]);
        assert_eq!((id_in(SOME_GROUPS, "shiparr"), id_in(SOME_GROUPS, "nobody")), (Some(996), None));
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(group_id(&group_name(0).unwrap()), Some(0));
    }
}
