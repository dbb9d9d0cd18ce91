//! The page's own files, as they were compiled in: nothing of a node is in them.

use std::sync::LazyLock;

use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// One of them.
pub(super) struct File {
    path: &'static str,
    pub kind: &'static str,
    pub body: Bytes,
    /// By its contents.
    pub etag: HeaderValue,
}

/// The file at a path, if there is one.
pub(super) fn at(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

/// Whether whoever asks has it already.
pub(super) fn is_known(file: &File, headers: &HeaderMap) -> bool {
    let mut known = headers.get_all(header::IF_NONE_MATCH).iter();
    known.any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|tag| tag.trim_ascii() == file.etag.as_bytes())
    })
}

/// Whether a browser asks, and not a program: for text, `/` says what there is.
pub(super) fn wants_page(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")))
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    EMBEDDED
        .iter()
        .map(|(path, kind, body)| {
            let digest = Sha256::digest(body);
            let tag: String = digest[..12].iter().map(|byte| format!("{byte:02x}")).collect();
            File {
                path,
                kind,
                body: Bytes::from_static(body),
                // Hexadecimal digits in quotes are a header's value.
                etag: HeaderValue::from_str(&format!("\"{tag}\"")).unwrap_or(HeaderValue::from_static("\"\"")),
            }
        })
        .collect()
});

/// Path, kind and contents.
const EMBEDDED: &[(&str, &str, &[u8])] = &[
    ("/", HTML, include_bytes!("page/index.html")),
    ("/page.css", CSS, include_bytes!("page/page.css")),
    ("/page.js", SCRIPT, include_bytes!("page/page.js")),
    ("/stream.js", SCRIPT, include_bytes!("page/stream.js")),
    ("/words.js", SCRIPT, include_bytes!("page/words.js")),
    ("/cells.js", SCRIPT, include_bytes!("page/cells.js")),
    ("/overview.js", SCRIPT, include_bytes!("page/overview.js")),
    ("/views.js", SCRIPT, include_bytes!("page/views.js")),
];
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
