//! Limits of this process. Not here: what to do with them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for memory by small pages: with huge ones, a little of everything costs two megabytes each.
pub fn use_small_pages() {
    // A kernel without huge pages refuses, and has none.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Raises the limit of open files to the most that this process may have, and returns it.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => most,
        Err(_) => limit.current.unwrap_or(most),
    }
}

/// `most`, or less where that is more than one in `part` of the descriptors that this process may have.
pub fn share(most: usize, part: u64) -> usize {
    let of_all = usize::try_from(open_files() / part).unwrap_or(usize::MAX);
    most.min(of_all).max(1)
}

/// How many descriptors this process may have.
pub fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
