//! Tasks as containers of a real dockerd.
