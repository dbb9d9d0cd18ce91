//! Whom a task that is a process runs as: names of users and groups to numbers, by this host's own lists.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::job::User;

/// `user` as specs have it: `name`, `uid`, `name:group` or `uid:gid`; `groups` besides. `None` when nothing is asked, and so
/// for this program's own user. Errors: in words, a name that nobody has, or one that this program may not become.
pub(super) fn of(user: &str, groups: &[String]) -> Result<Option<User>, String> {
    let lists = Lists {
        passwd: fs::read_to_string("/etc/passwd").unwrap_or_default(),
        group: fs::read_to_string("/etc/group").unwrap_or_default(),
    };
    let Some(user) = lists.user(user, groups)? else {
        return Ok(None);
    };
    let (own_uid, own_gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let is_own = user.uid == own_uid.as_raw() && user.gid == own_gid.as_raw() && groups.is_empty();
    match (own_uid.is_root(), is_own) {
        (true, _) => Ok(Some(user)),
        (false, true) => Ok(None),
        (false, false) => Err(format!(
            "User {}:{}: expected this node to run as root, or the user that it runs as, {}:{}",
            user.uid,
            user.gid,
            own_uid.as_raw(),
            own_gid.as_raw()
        )),
    }
}

/// The numbers of groups. Errors: in words, a name that nobody has.
pub(super) fn groups(names: &[String]) -> Result<Vec<u32>, String> {
    let lists = Lists {
        passwd: String::new(),
        group: fs::read_to_string("/etc/group").unwrap_or_default(),
    };
    let mut groups: Vec<u32> = names.iter().map(|name| lists.group(name)).collect::<Result<_, _>>()?;
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

impl User {
    /// The first directory on the way to `path`, which need not be there, that this user may not pass; `None` if there is none,
    /// and for root.
    pub(super) fn closed_on_the_way(&self, path: &Path) -> Option<PathBuf> {
        let parent = fs::canonicalize(path.parent()?).ok().filter(|_| self.uid != 0)?;
        let mut dirs: Vec<&Path> = parent.ancestors().collect();
        dirs.reverse();
        let may_pass = |dir: &Path| {
            let Ok(found) = fs::metadata(dir) else { return false };
            let bit = match () {
                () if found.uid() == self.uid => 0o100,
                () if found.gid() == self.gid || self.groups.contains(&found.gid()) => 0o010,
                () => 0o001,
            };
            found.mode() & bit != 0
        };
        dirs.into_iter().find(|dir| !may_pass(dir)).map(Path::to_owned)
    }
}

/// `/etc/passwd` and `/etc/group`.
struct Lists {
    passwd: String,
    group: String,
}

impl Lists {
    fn user(&self, user: &str, groups: &[String]) -> Result<Option<User>, String> {
        if user.is_empty() && groups.is_empty() {
            return Ok(None);
        }
        let (name, group) = user
            .split_once(':')
            .map_or((user, None), |(name, group)| (name, Some(group)));
        // Root, as in a container, where none is named.
        let name = if name.is_empty() { "0" } else { name };
        let entry = entry(&self.passwd, name);
        let (uid, of_user) = match (&entry, name.parse()) {
            (Some(fields), _) => (number(fields, 2), number(fields, 3)),
            // Nobody need be known by that number.
            (None, Ok(uid)) => (Some(uid), Some(0)),
            (None, Err(_)) => (None, None),
        };
        let unknown = || format!("unable to find user {name}: no matching entries in passwd file");
        let uid = uid.ok_or_else(unknown)?;
        let gid = match group.filter(|group| !group.is_empty()) {
            Some(group) => self.group(group)?,
            None => of_user.ok_or_else(unknown)?,
        };
        let mut all: Vec<u32> = groups.iter().map(|group| self.group(group)).collect::<Result<_, _>>()?;
        if let (None, Some(fields)) = (group, &entry) {
            all.extend(self.groups_of(fields.first().copied().unwrap_or_default()));
        }
        all.sort_unstable();
        all.dedup();
        Ok(Some(User { uid, gid, groups: all }))
    }

    fn group(&self, group: &str) -> Result<u32, String> {
        let named = entry(&self.group, group).and_then(|fields| number(&fields, 2));
        let number = named.or_else(|| group.parse().ok());
        number.ok_or_else(|| format!("unable to find group {group}: no matching entries in group file"))
    }

    fn groups_of(&self, name: &str) -> impl Iterator<Item = u32> {
        let lines = self.group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        lines.filter_map(move |fields| {
            let has = fields.get(3)?.split(',').any(|member| member == name);
            has.then(|| number(&fields, 2)).flatten()
        })
    }
}

/// Of this name, or else of this number.
fn entry<'a>(list: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines = || list.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let by_name = lines().find(|fields| fields.first() == Some(&name) && fields.len() > 2);
    by_name.or_else(|| lines().find(|fields| fields.get(2) == Some(&name)))
}

fn number(fields: &[&str], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let lists = Lists {
            passwd: "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\nbroken\n".to_owned(),
            group: "root:x:0:\nweb:x:34:\ntls:x:50:a,web\nlog:x:51:webmaster\n".to_owned(),
        };
        let user = |text: &str, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            let user = lists.user(text, &groups)?;
            Ok::<_, String>(user.map(|user| (user.uid, user.gid, user.groups)))
        };
        for (text, groups, expected) in [
            ("", &[][..], None),
            ("web", &[], Some((33, 34, vec![50]))),
            ("33", &[], Some((33, 34, vec![50]))),
            ("web:tls", &[], Some((33, 50, vec![]))),
            ("1000", &[], Some((1000, 0, vec![]))),
            ("1000:1001", &[], Some((1000, 1001, vec![]))),
            ("web:", &["51", "tls", "tls"], Some((33, 34, vec![50, 51]))),
            ("", &["log"], Some((0, 0, vec![51]))),
        ] {
            assert_eq!(user(text, groups), Ok(expected), "{text} {groups:?}");
        }
        for (text, groups) in [("nobody", &[][..]), ("web:none", &[]), ("-1", &[]), ("web", &["none"])] {
            assert!(user(text, groups).is_err(), "{text} {groups:?}");
        }
    }
}
