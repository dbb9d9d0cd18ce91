//! Control groups: what a process and all that it starts may use of memory, processors and processes. Of version 1, where each
//! controller has a tree of its own, of version 2, where one tree has all, and of hosts that have both. Not here: whose
//! processes they are, and what they are to have.

#![allow(unsafe_code, reason = "what runs between fork and exec is unsafe to say")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::group_end;

/// What a group may use at most. `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Of memory, this much is taken from it last.
    pub memory_low_bytes: Option<u64>,
    /// In thousand-millionths of one processor.
    pub nano_cpus: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A group: a directory in each tree that it needs, one in version 2; and one where all that is in it can be ended at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub dirs: Vec<PathBuf>,
}

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("this host has no control groups for {controller}")]
    Absent { controller: &'static str },
    #[error("no control group for {controller} can be made: {dir}: {error}")]
    Make {
        controller: &'static str,
        dir: PathBuf,
        error: io::Error,
    },
    #[error("{file}: {error}")]
    Set { file: PathBuf, error: io::Error },
}

/// The trees of control groups that this process sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trees(Vec<Tree>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    mounted_at: PathBuf,
    /// The group of this process.
    own: PathBuf,
    /// `None`: version 2, which says itself what it has.
    controllers: Option<Vec<String>>,
}

impl Trees {
    pub fn seen() -> Trees {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Trees::of(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// By the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
    fn of(mounts: &str, groups: &str) -> Trees {
        let tree = |line: &str| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (root, at) = (unescaped(mount.next()?), unescaped(mount.next()?));
            let mut file_system = file_system.split(' ');
            let controllers = match (file_system.next()?, file_system.nth(1)?) {
                ("cgroup", options) => Some(options.split(',').map(str::to_owned).collect::<Vec<_>>()),
                ("cgroup2", _) => None,
                _ => return None,
            };
            let own = groups.lines().find_map(|line| {
                let (names, path) = line.split_once(':')?.1.split_once(':')?;
                let is_of_tree = match &controllers {
                    Some(controllers) => names
                        .split(',')
                        .any(|name| controllers.iter().any(|known| known == name)),
                    None => names.is_empty(),
                };
                is_of_tree.then_some(path)
            });
            // Seen from below a group, as in a container, paths begin there.
            let own = own.map(Path::new).and_then(|own| own.strip_prefix(&root).ok());
            Some(Tree {
                own: own.map_or_else(|| at.clone(), |own| at.join(own)),
                mounted_at: at,
                controllers,
            })
        };
        Trees(mounts.lines().filter_map(tree).collect())
    }

    /// A group of that name that nobody is in yet, beside the one of this process and not in it: what ends all that is in the
    /// latter leaves it alone. One that is there already is taken. `is_to_end`: all that is in it is to be ended at once, where
    /// this host can do that.
    ///
    /// Errors: the first limit that cannot be kept, and nothing is left then.
    pub fn make(&self, name: &str, limits: &Limits, is_to_end: bool) -> Result<Group, GroupError> {
        let mut group = Group { dirs: Vec::new() };
        if let Err(error) = self.make_in(name, limits, &mut group) {
            group.remove();
            return Err(error);
        }
        let ending = self.ending().filter(|_| is_to_end);
        if let Some(Ok(dir)) = ending.map(|tree| tree.make(None, name)) {
            match group_end::is_sure(&dir) {
                true if group.dirs.contains(&dir) => {}
                true => group.dirs.push(dir),
                false => drop(fs::remove_dir(dir)),
            }
        }
        Ok(group)
    }

    /// Where groups can be ended at once: version 2, or the freezer of version 1.
    fn ending(&self) -> Option<&Tree> {
        let second = self.0.iter().find(|tree| tree.controllers.is_none());
        second.or_else(|| self.0.iter().find(|tree| tree.has("freezer")))
    }

    /// The group of that name, as far as it is there.
    pub fn find(&self, name: &str) -> Group {
        let places = self.0.iter().flat_map(Tree::places);
        let mut dirs: Vec<PathBuf> = places.map(|place| place.join(ALL).join(name)).collect();
        dirs.retain(|dir| dir.is_dir());
        Group { dirs }
    }

    fn make_in(&self, name: &str, limits: &Limits, group: &mut Group) -> Result<(), GroupError> {
        let memory = limits.memory_bytes.or(limits.memory_low_bytes);
        let wanted = [("memory", memory), ("cpu", limits.nano_cpus), ("pids", limits.pids)];
        for (controller, limit) in wanted {
            if limit.is_none() {
                continue;
            }
            let tree = self.0.iter().find(|tree| tree.has(controller));
            let tree = tree.ok_or(GroupError::Absent { controller })?;
            let dir = tree.make(Some(controller), name);
            let dir = dir.map_err(|(dir, error)| GroupError::Make { controller, dir, error })?;
            if !group.dirs.contains(&dir) {
                group.dirs.push(dir.clone());
            }
            set(&dir, controller, limits, tree.controllers.is_none())?;
        }
        Ok(())
    }
}

impl Tree {
    fn has(&self, controller: &str) -> bool {
        match &self.controllers {
            Some(controllers) => controllers.iter().any(|known| known == controller),
            None => has_word(&self.mounted_at.join("cgroup.controllers"), controller),
        }
    }

    /// Where groups may be, the best first: at the root, or as far up from our own as we may.
    fn places(&self) -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = self
            .own
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&self.mounted_at))
            .map(Path::to_owned)
            .collect();
        places.reverse();
        if places.is_empty() {
            places.push(self.mounted_at.clone());
        }
        places
    }

    /// Errors: the best place, and why it is none.
    fn make(&self, controller: Option<&str>, name: &str) -> Result<PathBuf, (PathBuf, io::Error)> {
        let mut first = None;
        for place in self.places() {
            match self.make_at(&place, controller, name) {
                Ok(dir) => return Ok(dir),
                Err(error) => drop(first.get_or_insert((place, error))),
            }
        }
        Err(first.unwrap_or_else(|| (self.mounted_at.clone(), io::ErrorKind::NotFound.into())))
    }

    fn make_at(&self, place: &Path, controller: Option<&str>, name: &str) -> io::Result<PathBuf> {
        let all = place.join(ALL);
        let dir = all.join(name);
        let controller = controller.filter(|_| self.controllers.is_none());
        if let Some(controller) = controller {
            allow(place, controller)?;
        }
        // Whoever removes the last of them may take the upper one along.
        for _ in 0..MAKE_AGAIN {
            make_dir(&all)?;
            if let Some(controller) = controller {
                allow(&all, controller)?;
            }
            match make_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                made => return made.map(|()| dir),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Groups in `dir` may have limits of this kind from now on (version 2).
fn allow(dir: &Path, controller: &str) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    match has_word(&file, controller) {
        true => Ok(()),
        false => write(&file, &format!("+{controller}")),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn has_word(file: &Path, word: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().any(|found| found == word)
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).truncate(true).open(file)?;
    file.write_all(text.as_bytes())
}

fn set(dir: &Path, controller: &str, limits: &Limits, is_unified: bool) -> Result<(), GroupError> {
    let put = |name: &str, value: String| {
        let file = dir.join(name);
        write(&file, &value).map_err(|error| GroupError::Set { file, error })
    };
    // Swap is not there on all hosts. Docker gives as much of it as of memory.
    let put_if_there = |name: &str, value: String| match dir.join(name).exists() {
        true => put(name, value),
        false => Ok(()),
    };
    let quota = |nanos: u64| (nanos / (1_000_000_000 / CPU_PERIOD_US)).max(CPU_QUOTA_LEAST_US);
    match (controller, is_unified) {
        ("memory", true) => {
            if let Some(low) = limits.memory_low_bytes {
                put("memory.low", low.to_string())?;
            }
            let Some(most) = limits.memory_bytes else { return Ok(()) };
            put("memory.max", most.to_string())?;
            put_if_there("memory.swap.max", most.to_string())
        }
        ("memory", false) => {
            if let Some(low) = limits.memory_low_bytes {
                put("memory.soft_limit_in_bytes", low.to_string())?;
            }
            let Some(most) = limits.memory_bytes else { return Ok(()) };
            put("memory.limit_in_bytes", most.to_string())?;
            put_if_there("memory.memsw.limit_in_bytes", most.saturating_mul(2).to_string())
        }
        ("cpu", true) => match limits.nano_cpus {
            Some(nanos) => put("cpu.max", format!("{} {CPU_PERIOD_US}", quota(nanos))),
            None => Ok(()),
        },
        ("cpu", false) => match limits.nano_cpus {
            Some(nanos) => {
                put("cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
                put("cpu.cfs_quota_us", quota(nanos).to_string())
            }
            None => Ok(()),
        },
        _ => match limits.pids {
            Some(pids) => put("pids.max", pids.to_string()),
            None => Ok(()),
        },
    }
}

impl Group {
    /// The same by paths that hold whatever is mounted over the trees later, as long as the descriptors are open.
    pub fn pinned(&self) -> io::Result<(Group, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let mut dirs = Vec::new();
        for dir in &self.dirs {
            let (Some(all), Some(name)) = (dir.parent(), dir.file_name()) else {
                continue;
            };
            let fd = rustix::fs::open(all, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            dirs.push(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())).join(name));
            fds.push(fd);
        }
        Ok((Group { dirs }, fds))
    }

    /// Has the program that `command` starts be in the group from its first instruction on. To be said before
    /// `process::become_user`. Errors: the group is not there.
    pub fn hold(&self, command: &mut Command) -> io::Result<()> {
        for dir in &self.dirs {
            let mut members = File::options().write(true).open(dir.join(MEMBERS))?;
            // SAFETY: between fork and exec only a system call is made.
            unsafe { command.pre_exec(move || members.write_all(b"0")) };
        }
        Ok(())
    }

    /// Whether anything in it was ended since it needed more memory than it may have.
    pub fn is_out_of_memory(&self) -> bool {
        let killed = |file: PathBuf| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.any(|(key, n)| key == "oom_kill" && n.trim() != "0")
        };
        let files = ["memory.events", "memory.oom_control"];
        self.dirs
            .iter()
            .any(|dir| files.iter().any(|file| killed(dir.join(file))))
    }

    /// Ends all that is in it. Where the kernel can do that at once nothing gets away, however fast it starts others.
    pub fn end(&self) {
        let sure = self.sure();
        match sure {
            Some(dir) => group_end::end(dir),
            None => self.dirs.iter().for_each(|dir| group_end::end(dir)),
        }
    }

    /// A group inside this one for a part of what is in it, to be ended by itself. It is not made. `None`: nothing can be ended at
    /// once here.
    pub fn part(&self, name: &str) -> Option<Group> {
        let dirs = vec![self.sure()?.join(name)];
        Some(Group { dirs })
    }

    /// Makes a part of this one, which may be there. Answers what its members are to be in. Errors: it cannot be made.
    pub fn narrowed(&self, part: &Group) -> io::Result<Group> {
        part.dirs.iter().try_for_each(|dir| make_dir(dir))?;
        let within = |dir: &PathBuf| {
            part.dirs
                .iter()
                .find(|part| part.parent() == Some(dir))
                .unwrap_or(dir)
                .clone()
        };
        Ok(Group {
            dirs: self.dirs.iter().map(within).collect(),
        })
    }

    fn sure(&self) -> Option<&PathBuf> {
        self.dirs.iter().find(|dir| group_end::is_sure(dir))
    }

    /// Ends all that is in it, and takes it away. What is not there is no error. Blocks for a second at most.
    pub fn remove(&self) {
        let until = Instant::now() + LEAVE_LONGEST;
        let (sure, other): (Vec<_>, Vec<_>) = self.dirs.iter().partition(|dir| group_end::is_sure(dir));
        for dir in sure.into_iter().chain(other) {
            group_end::remove(dir, until);
            // Once it was the last.
            if let Some(all) = dir.parent() {
                drop(fs::remove_dir(all));
            }
        }
    }
}

/// A path as mountinfo writes it: `\040` for a space, and so on.
fn unescaped(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path.into()
}

/// The group that has all of ours.
const ALL: &str = "anynode";
const MEMBERS: &str = "cgroup.procs";
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel takes no less.
const CPU_QUOTA_LEAST_US: u64 = 1_000;
const MAKE_AGAIN: u32 = 10;
const LEAVE_LONGEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_LIMITS: Limits = Limits {
        memory_bytes: Some(64 << 20),
        memory_low_bytes: Some(32 << 20),
        nano_cpus: Some(1_500_000_000),
        pids: Some(20),
    };

    #[test]
    fn trees_of_version_1_and_of_both() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/abc /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups =
            "4:memory:/docker/abc/inner\n3:cpu,cpuacct:/system.slice/anynode.service\n0::/system.slice/any:node\n";
        let Trees(trees) = Trees::of(mounts, groups);
        let seen: Vec<_> = trees
            .iter()
            .map(|tree| {
                (
                    tree.mounted_at.to_str().unwrap(),
                    tree.own.to_str().unwrap(),
                    tree.controllers.is_none(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/system.slice/anynode.service",
                    false
                ),
                ("/sys/fs/cgroup/mem ory", "/sys/fs/cgroup/mem ory/inner", false),
                (
                    "/sys/fs/cgroup/unified",
                    "/sys/fs/cgroup/unified/system.slice/any:node",
                    true
                ),
            ]
        );
        assert!(trees[0].has("cpu") && !trees[0].has("memory") && trees[1].has("memory"));
        let places: Vec<_> = trees[0].places();
        assert_eq!(
            places,
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/system.slice"].map(PathBuf::from)
        );
    }

    /// A made-up tree of version 2: what a kernel would put into a new group is put there before.
    struct Unified(tempfile::TempDir);

    impl Unified {
        fn new(own: &str, name: &str) -> (Unified, Trees) {
            let root = tempfile::tempdir().unwrap();
            let unified = Unified(root);
            let put = |dir: &str, files: &[(&str, &str)]| {
                fs::create_dir_all(unified.0.path().join(dir)).unwrap();
                for (file, text) in files {
                    fs::write(unified.0.path().join(dir).join(file), text).unwrap();
                }
            };
            put(
                "",
                &[
                    ("cgroup.controllers", "cpuset cpu io memory pids\n"),
                    ("cgroup.subtree_control", "memory\n"),
                ],
            );
            put(own.trim_start_matches('/'), &[]);
            put(ALL, &[("cgroup.subtree_control", "")]);
            let files = [
                "memory.max",
                "memory.low",
                "memory.swap.max",
                "cpu.max",
                "pids.max",
                MEMBERS,
            ];
            put(&format!("{ALL}/{name}"), &files.map(|file| (file, "")));
            let mounts = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", unified.0.path().display());
            let trees = Trees::of(&mounts, &format!("0::{own}\n"));
            (unified, trees)
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.path().join(file)).unwrap()
        }
    }

    #[test]
    fn one_group_of_version_2_has_all_limits() {
        let (unified, trees) = Unified::new("/system.slice/anynode.service", "task");
        let group = trees.make("task", &ALL_LIMITS, false).unwrap();
        let dir = unified.0.path().join("anynode/task");
        assert_eq!(group.dirs, [dir]);
        for (file, expected) in [
            ("anynode/task/memory.max", "67108864"),
            ("anynode/task/memory.low", "33554432"),
            ("anynode/task/memory.swap.max", "67108864"),
            ("anynode/task/cpu.max", "150000 100000"),
            ("anynode/task/pids.max", "20"),
            // The last that was let through; a kernel would add it to the others.
            ("anynode/cgroup.subtree_control", "+pids"),
            ("cgroup.subtree_control", "+pids\n"),
        ] {
            assert_eq!(unified.read(file).trim_end(), expected.trim_end(), "{file}");
        }
        assert!(!group.is_out_of_memory());
        let events = unified.0.path().join("anynode/task/memory.events");
        fs::write(&events, "low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\noom_group_kill 0\n").unwrap();
        assert!(!group.is_out_of_memory());
        fs::write(&events, "oom 1\noom_kill 2\n").unwrap();
        assert!(group.is_out_of_memory());
    }

    #[test]
    fn a_group_is_to_be_ended_at_once_where_that_can_be() {
        let (unified, trees) = Unified::new("/a", "task");
        let dir = unified.0.path().join("anynode/task");
        // A kernel that cannot.
        assert_eq!(trees.make("task", &Limits::default(), true).unwrap().dirs.len(), 0);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cgroup.kill"), "").unwrap();
        assert_eq!(trees.make("task", &Limits::default(), false).unwrap().dirs.len(), 0);
        let group = trees.make("task", &Limits::default(), true).unwrap();
        assert_eq!(group.dirs, std::slice::from_ref(&dir));
        let part = group.part("beside-7").unwrap();
        assert_eq!(group.narrowed(&part).unwrap().dirs, [dir.join("beside-7")]);
        part.end();
        assert_eq!(unified.read("anynode/task/cgroup.kill"), "");
        group.end();
        assert_eq!(unified.read("anynode/task/cgroup.kill"), "1");
        // No limit was asked for.
        assert_eq!(unified.read("cgroup.subtree_control"), "memory\n");
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_an_error() {
        let (unified, trees) = Unified::new("/system.slice/anynode.service", "task");
        fs::write(unified.0.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let pids = Limits {
            pids: Some(1),
            ..Limits::default()
        };
        let error = trees.make("task", &pids, false).unwrap_err().to_string();
        assert_eq!(error, "this host has no control groups for pids");
        let (unified, trees) = Unified::new("/a", "task");
        fs::remove_file(unified.0.path().join("cgroup.subtree_control")).unwrap();
        let error = trees.make("task", &pids, false).unwrap_err().to_string();
        assert!(error.starts_with("no control group for pids can be made: /"), "{error}");
        assert!(matches!(
            Trees::of("", "").make("task", &ALL_LIMITS, false),
            Err(GroupError::Absent { controller: "memory" })
        ));
        assert_eq!(
            Trees::of("", "")
                .make("task", &Limits::default(), true)
                .unwrap()
                .dirs
                .len(),
            0
        );
    }
}
