//! What a task that is a process has mounted: binds, volumes and file systems in memory, in mounts of its own which nobody else
//! sees. They are put where descriptors lead that were judged before, never where a path leads by then. Not here: named volumes
//! (`volumes`), and what is hidden from tasks (`sys::view`).

pub(super) mod plan;
mod source;
mod target;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use self::source::Hidden;
pub(super) use self::target::make_dir;
use self::target::{Kind, Walk};
use crate::model::volume::{MountOf, TaskMount};
use crate::sys::mounts::{Loose, ReadOnly, path_of, place, with_usual_modes};

/// All that one task has mounted, those in front first that others lie in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mounts {
    pub(super) list: Vec<Mount>,
    /// What may not be bound, neither itself nor what it lies in or holds.
    pub(super) kept_out: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mount {
    /// Absolute, with nothing in it but names.
    pub(super) target: PathBuf,
    pub(super) what: What,
    #[serde(default)]
    pub(super) read_only: bool,
    /// What is mounted below may be written to all the same.
    #[serde(default)]
    pub(super) read_only_top: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    Bind {
        source: PathBuf,
        /// With what is mounted below it.
        with_below: bool,
        /// A directory is made where there is nothing.
        is_made: bool,
    },
    Volume {
        /// `None`: it is the task's own, and goes with it.
        name: Option<String>,
        source: PathBuf,
        #[serde(default)]
        subpath: Option<PathBuf>,
        /// If it is made for this task.
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
    Memory {
        size_bytes: Option<u64>,
        mode: u32,
        has_programs: bool,
    },
}

impl Mount {
    /// As others see it.
    pub(super) fn shown(self) -> TaskMount {
        let of = match self.what {
            What::Bind { source, .. } => MountOf::Bind { source },
            What::Volume { name, source, .. } => MountOf::Volume { name, source },
            What::Memory { .. } => MountOf::Memory,
        };
        TaskMount {
            of,
            target: self.target,
            is_writable: !self.read_only,
        }
    }
}

impl Mounts {
    /// The named volumes among them.
    pub(super) fn volumes(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|mount| match &mount.what {
            What::Volume { name, .. } => name.as_deref(),
            What::Bind { .. } | What::Memory { .. } => None,
        })
    }

    /// Looks at what is to be bound, and makes nothing. Errors: in words, what is not there, or may not be bound.
    pub(super) fn judge(&self) -> Result<(), String> {
        let hidden = Hidden::of(&self.kept_out);
        for mount in &self.list {
            if let What::Bind { source, is_made, .. } = &mount.what {
                let is_there = !is_made || source.symlink_metadata().is_ok();
                match is_there {
                    true => drop(source::open(&mount.what, &hidden).map_err(|reason| mount.failed(&reason))?),
                    // What it will lie in.
                    false => hidden.judge_parent(source).map_err(|reason| mount.failed(&reason))?,
                }
            }
        }
        Ok(())
    }

    /// Makes all of them, by a process or a thread that has its mounts for itself. `own`: the task's directory, which is not
    /// to be covered; `hidden`: what the task will not see. Answers what of `hidden` is still to be hidden: the rest is
    /// covered. Targets that are not there are made, and stay.
    ///
    /// Errors: in words; some may have been mounted by then, and targets made.
    pub(super) fn make(&self, own: &Path, hidden: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
        let kept_out = Hidden::of(&self.kept_out);
        let mut hidden: Vec<PathBuf> = hidden.iter().filter_map(|path| path.canonicalize().ok()).collect();
        let mut walk = Walk::new(&hidden, own)?;
        // All of them are of what there is before the first is put anywhere.
        let held: Vec<Option<OwnedFd>> = self.each(|mount| source::open(&mount.what, &kept_out))?;
        let mut held = held.into_iter();
        let loose = self.each(|mount| {
            let source = held.next().flatten();
            let kind = kind_of(source.as_ref()).map_err(|error| error.to_string())?;
            Ok((kind, mount.loose(source.as_ref()).map_err(|error| error.to_string())?))
        })?;
        let mut loose = loose.into_iter();
        let put = with_usual_modes(|| {
            self.each(|mount| {
                let Some((kind, loose)) = loose.next() else {
                    return Err("it was not made".to_owned());
                };
                let at = walk.to(&mount.target, kind)?;
                let failed = |error: std::io::Error| error.to_string();
                let path = path_of(&at).map_err(failed)?;
                let top = loose.put(at.as_fd()).map_err(failed)?;
                let top = place(&top).map_err(failed)?;
                walk.add(top);
                Ok((path, top))
            })
        })?;
        // As the task's program will find them.
        let mut tops = put.iter().map(|(_, top)| *top);
        self.each(|mount| {
            let seen = hold(&mount.target).ok().and_then(|seen| place(seen).ok());
            match seen == tops.next() {
                true => Ok(()),
                false => Err("another of the task's mounts would cover it: expected targets without links".to_owned()),
            }
        })?;
        hidden.retain(|path| !put.iter().any(|(covered, _)| path.starts_with(covered)));
        Ok(hidden)
    }

    fn each<T>(&self, mut make: impl FnMut(&Mount) -> Result<T, String>) -> Result<Vec<T>, String> {
        let made = self.list.iter();
        made.map(|mount| make(mount).map_err(|reason| mount.failed(&reason)))
            .collect()
    }
}

impl Mount {
    fn failed(&self, reason: &str) -> String {
        failed(&self.target.to_string_lossy(), reason)
    }

    fn loose(&self, source: Option<&OwnedFd>) -> std::io::Result<Loose> {
        let with_below = !matches!(self.what, What::Bind { with_below: false, .. });
        let loose = match (&self.what, source) {
            (
                What::Memory {
                    size_bytes,
                    mode,
                    has_programs,
                },
                _,
            ) => Loose::in_memory(*size_bytes, *mode, *has_programs)?,
            (_, Some(source)) => Loose::copy_of(source.as_fd(), with_below)?,
            (_, None) => return Err(std::io::ErrorKind::NotFound.into()),
        };
        if self.read_only {
            let what = if self.read_only_top {
                ReadOnly::Top
            } else {
                ReadOnly::Whole
            };
            loose.make_read_only(what)?;
        }
        Ok(loose)
    }
}

/// As each of these errors begins.
fn failed(target: &str, reason: &str) -> String {
    format!("ContainerSpec.Mounts: {target}: {reason}")
}

fn kind_of(source: Option<&OwnedFd>) -> std::io::Result<Kind> {
    let Some(source) = source else { return Ok(Kind::Dir) };
    Ok(match is_dir(place(source)?.mode) {
        true => Kind::Dir,
        false => Kind::File,
    })
}

fn is_dir(mode: u32) -> bool {
    rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory
}

/// Wherever links lead.
fn hold(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
