//! A client's connection that speaks HTTP/2 and has many requests under way at once. Each is seen through by `h1`, as any other. Not
//! here: the frames (`h2`).

mod serve;
mod stream;

pub(super) use serve::serve;
