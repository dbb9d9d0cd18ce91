//! The body of an answer, compressed as it passes. Not here: whether it may be (`http::coded`).

use std::cell::Cell;

use flate2::{Compression, FlushCompress, Status};

use crate::proxy::http::encode_chunk;

thread_local! {
    static N_UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// One compressor: about 270 KB while it lasts, so a worker has few.
pub(super) struct Gzip {
    deflate: flate2::Compress,
    /// What of the body is to be compressed next.
    pub(super) plain: Vec<u8>,
    /// What came of it, and is not yet in a chunk.
    coded: Vec<u8>,
    /// It holds back what it was given.
    holds_back: bool,
}

impl Gzip {
    /// Whether this worker may have one more.
    pub(super) fn has_room() -> bool {
        N_UNDER_WAY.get() < UNDER_WAY_MOST
    }

    pub(super) fn begin() -> Box<Gzip> {
        N_UNDER_WAY.set(N_UNDER_WAY.get() + 1);
        Box::new(Gzip {
            deflate: flate2::Compress::new_gzip(Compression::new(LEVEL), WINDOW_BITS),
            plain: Vec::new(),
            coded: Vec::new(),
            holds_back: false,
        })
    }

    /// Takes what `plain` has, and writes what comes of it as a chunk. Errors: it cannot go on.
    pub(super) fn take(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut plain = std::mem::take(&mut self.plain);
        self.holds_back |= !plain.is_empty();
        let result = self.run(&plain, FlushCompress::None, out);
        plain.clear();
        self.plain = plain;
        result
    }

    /// Writes all that was taken: the client can read it now. Whether there was any.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>) -> Result<bool, Broken> {
        if !self.holds_back {
            return Ok(false);
        }
        self.holds_back = false;
        self.run(&[], FlushCompress::Sync, out)?;
        Ok(true)
    }

    /// Writes the rest, and the end of the body.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.holds_back = false;
        self.run(&[], FlushCompress::Finish, out)?;
        out.extend_from_slice(b"0\r\n\r\n");
        Ok(())
    }

    /// How many bytes were taken, and came of them.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.deflate.total_in(), self.deflate.total_out())
    }

    fn run(&mut self, mut plain: &[u8], flush: FlushCompress, out: &mut Vec<u8>) -> Result<(), Broken> {
        loop {
            self.coded.reserve(ROOM);
            let before = self.totals();
            let status = self.deflate.compress_vec(plain, &mut self.coded, flush);
            let taken = usize::try_from(self.deflate.total_in() - before.0).unwrap_or(plain.len());
            plain = plain.get(taken..).unwrap_or_default();
            // Where room is left it has no more to write for now.
            let has_room = self.coded.len() < self.coded.capacity();
            match status {
                Ok(Status::StreamEnd) => break,
                Ok(_) if has_room && plain.is_empty() && flush != FlushCompress::Finish => break,
                Ok(_) if !has_room || self.totals() != before => {}
                _ => return Err(Broken),
            }
        }
        encode_chunk(&self.coded, out);
        self.coded.clear();
        Ok(())
    }
}

impl Drop for Gzip {
    fn drop(&mut self) {
        // An error means that the thread is ending.
        let _ = N_UNDER_WAY.try_with(|n| n.set(n.get().saturating_sub(1)));
    }
}

/// The compressor failed, which it has no reason to.
#[derive(Debug)]
pub(super) struct Broken;

/// Of 1 to 9.
const LEVEL: u32 = 4;
const WINDOW_BITS: u8 = 15;
const ROOM: usize = 4096;
/// At once on one worker; other answers go as they are.
const UNDER_WAY_MOST: usize = 256;
