//! RFC 7541: what is compressed wrongly is an error of the connection, since nothing after it can be read.

use super::super::frames::{COMPRESSION_ERROR, WHOLE, get, headers, integer};
use super::{BY_CRATE, Case, Expect, must};
use crate::h2::frames::Client;

const WRONG: Expect = Expect::ConnectionError(&[COMPRESSION_ERROR]);

/// A request with these bytes behind its fields.
fn ask_with(c: &mut Client, bytes: &[u8]) {
    c.say(&[headers(1, WHOLE, &[&get(), bytes].concat())]);
}

pub(super) const CASES: &[Case] = &[
    must(
        "hpack/2.3.3/1",
        "an index beyond the tables",
        |c| ask_with(c, b"\xc6"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "hpack/2.3.3/2",
        "a name's index beyond the tables",
        |c| ask_with(c, b"\x7f\x07\x00"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "hpack/4.2/1",
        "a change of the table's size at a block's end",
        |c| ask_with(c, b"\x21"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "hpack/5.2/1",
        "Huffman code with more than 7 bits of padding",
        |c| ask_with(c, b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "hpack/5.2/2",
        "Huffman code padded with zeros",
        |c| ask_with(c, b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "hpack/5.2/3",
        "Huffman code with the end of string in it",
        |c| ask_with(c, b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"),
        WRONG,
    )
    .known(BY_CRATE),
    must("hpack/6.1/1", "index 0", |c| ask_with(c, b"\x80"), WRONG).known(BY_CRATE),
    must(
        "hpack/6.3/1",
        "a table larger than the server takes",
        |c| {
            let block = [integer(0x20, 5, 4097), get()].concat();
            c.say(&[headers(1, WHOLE, &block)]);
        },
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "rfc9113/7541-5.1/1",
        "an integer without an end",
        |c| ask_with(c, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        WRONG,
    )
    .known(BY_CRATE),
    must(
        "rfc9113/7541-5.2/1",
        "a string longer than its block",
        |c| ask_with(c, b"\x00\x03x-a\x7f\xff\x7f1"),
        WRONG,
    )
    .known(BY_CRATE),
];
