//! Memory of this process, as its allocator holds it. Not here: who uses it.

#![allow(unsafe_code)]

/// Gives back to the kernel what the calling thread has freed, where the allocator is mimalloc: it keeps what a burst
/// needed for the next one otherwise. It walks the thread's heap, and is for seldom use.
pub fn give_back() {
    // SAFETY: any thread may call it at any time, also where another allocator is in use.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
