//! What a client's frames ask of us beside requests: each frame that is not part of a body costs one, whatever its kind, and what is
//! answered earns some; who has spent all is told to calm down. So a flood of PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM,
//! CONTINUATION, or of anything else, ends within a thousand frames. By the heads of frames alone; what is in them is the `h2` crate's
//! affair, and so are small DATA frames, which have a budget there. Frames of a length that their kind cannot have are named here,
//! since the crate has one word for all faults. Pure.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use h2::Reason;

/// Why a client is to be sent off, once it is.
pub(in crate::proxy) type Verdict = Arc<OnceLock<Reason>>;

/// The frames of one connection.
pub(super) struct Meter {
    received: Heads,
    sent: Heads,
    /// How many more frames the client may send.
    n_left: u32,
    filled_at: Instant,
    has_begun: bool,
    verdict: Verdict,
}

impl Meter {
    /// Of a client whose preface is still to be read.
    pub(super) fn new(now: Instant) -> Meter {
        Meter {
            received: Heads {
                n_payload: PREFACE_BYTES,
                ..Heads::default()
            },
            sent: Heads::default(),
            n_left: FRAMES_MOST,
            filled_at: now,
            has_begun: false,
            verdict: Verdict::default(),
        }
    }

    pub(super) fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Counts what came. Returns how many of the bytes are to be taken; fewer than came once the client is to be sent off.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let Meter {
            received,
            n_left,
            filled_at,
            has_begun,
            verdict,
            ..
        } = self;
        received.pass(bytes, |head| {
            let is_first = !std::mem::replace(has_begun, true);
            let fault = match () {
                () if is_first && head.kind != SETTINGS => Some(Reason::PROTOCOL_ERROR),
                () if !head.can_be_so_long() => Some(Reason::FRAME_SIZE_ERROR),
                () if head.kind != DATA && !spend(n_left, filled_at) => Some(Reason::ENHANCE_YOUR_CALM),
                () => None,
            };
            match fault {
                Some(reason) => verdict.set(reason).is_err(),
                None => true,
            }
        })
    }

    /// Counts what was sent.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let n_left = &mut self.n_left;
        self.sent.pass(bytes, |head| {
            if head.kind == HEADERS || (head.kind == DATA && head.len > 0) {
                *n_left = n_left.saturating_add(EARNED).min(FRAMES_MOST);
            }
            true
        });
    }
}

/// Takes one of what is left. `false`: nothing is, not even by the time that has passed.
fn spend(n_left: &mut u32, filled_at: &mut Instant) -> bool {
    if *n_left == 0 {
        let now = Instant::now();
        let passed = now.duration_since(*filled_at).as_millis() / EVERY.as_millis();
        *n_left = u32::try_from(passed).map_or(FRAMES_MOST, |n| n.min(FRAMES_MOST));
        *filled_at = now;
    }
    match n_left.checked_sub(1) {
        Some(left) => {
            *n_left = left;
            true
        }
        None => false,
    }
}

/// Where one direction of a connection is between two heads of frames.
#[derive(Default)]
struct Heads {
    head: [u8; HEAD_BYTES],
    n_head: usize,
    /// How much of the frame's payload is still to come.
    n_payload: usize,
}

struct Head {
    len: usize,
    kind: u8,
    flags: u8,
}

impl Heads {
    /// Passes over `bytes`, up to a head that `on` does not want. Returns how many of them come before that head is whole.
    fn pass(&mut self, bytes: &[u8], mut on: impl FnMut(Head) -> bool) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.n_payload > 0 {
                let n = self.n_payload.min(bytes.len() - at);
                self.n_payload -= n;
                at += n;
                continue;
            }
            self.head[self.n_head] = *byte;
            self.n_head += 1;
            if self.n_head == HEAD_BYTES {
                let [l0, l1, l2, kind, flags, ..] = self.head;
                let len = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                (self.n_head, self.n_payload) = (0, len);
                if !on(Head { len, kind, flags }) {
                    return at;
                }
            }
            at += 1;
        }
        at
    }
}

impl Head {
    /// Whether a frame of its kind may have its length (RFC 9113 6).
    fn can_be_so_long(&self) -> bool {
        match self.kind {
            PRIORITY => self.len == 5,
            RST_STREAM | WINDOW_UPDATE => self.len == 4,
            SETTINGS if self.flags & ACK != 0 => self.len == 0,
            SETTINGS => self.len.is_multiple_of(6),
            PING => self.len == 8,
            GOAWAY => self.len >= 8,
            _ => true,
        }
    }
}

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
/// Frames that a client may send before anything is answered.
const FRAMES_MOST: u32 = 1000;
/// What an answer's head, or a part of its body, earns: clients widen two windows for it, some of them in small steps.
const EARNED: u32 = 16;
/// One frame more is free after so long: who is silent otherwise may ask for signs of life.
const EVERY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    /// One that has seen preface and SETTINGS.
    fn begun() -> Meter {
        let mut meter = Meter::new(Instant::now());
        let begin = [vec![0; PREFACE_BYTES], frame(SETTINGS, 0, &[0; 6])].concat();
        assert_eq!(meter.receive(&begin), begin.len());
        meter
    }

    #[test]
    fn a_flood_ends_and_what_is_answered_does_not() {
        let mut meter = begun();
        let ping = frame(PING, 0, &[0; 8]);
        // Frames are found however they are cut.
        let flood = ping.repeat(5000);
        let n_taken: usize = flood
            .chunks(7)
            .map(|part| meter.receive(part))
            .take_while(|n| *n == 7)
            .sum();
        assert_eq!(meter.verdict().get(), Some(&Reason::ENHANCE_YOUR_CALM));
        assert!(n_taken / ping.len() <= 1000, "{n_taken}");

        let mut meter = begun();
        for _ in 0..5000 {
            assert_eq!(meter.receive(&ping), ping.len());
            meter.send(&frame(DATA, 0, b"x"));
        }
        assert_eq!(meter.verdict().get(), None);
    }

    #[test]
    fn bodies_cost_nothing() {
        let mut meter = begun();
        let data = frame(DATA, 0, &[0; 100]).repeat(5000);
        assert_eq!(meter.receive(&data), data.len());
        assert_eq!(meter.verdict().get(), None);
    }

    #[test]
    fn a_frame_of_a_wrong_length_is_not_taken() {
        for (kind, flags, len) in [
            (PING, 0, 7),
            (SETTINGS, 0, 5),
            (SETTINGS, ACK, 6),
            (GOAWAY, 0, 7),
            (PRIORITY, 0, 4),
        ] {
            let mut meter = begun();
            let wrong = frame(kind, flags, &vec![0; len]);
            assert_eq!(meter.receive(&wrong), HEAD_BYTES - 1, "{kind}");
            assert_eq!(meter.verdict().get(), Some(&Reason::FRAME_SIZE_ERROR), "{kind}");
        }
    }

    #[test]
    fn settings_come_first() {
        let mut meter = Meter::new(Instant::now());
        meter.receive(&[vec![0; PREFACE_BYTES], frame(PING, 0, &[0; 8])].concat());
        assert_eq!(meter.verdict().get(), Some(&Reason::PROTOCOL_ERROR));
    }
}
