//! One client connection in http mode, by whichever version of HTTP the client speaks: it says so by TLS, or by how it begins.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Shared;
use super::core::Connection;
use super::h1::{self, Entry, Preface};
use super::session;
use super::wire::Client;

/// Serves one client from accept to close.
///
/// A block, since an `async fn` would keep its arguments twice: a task of this size is there for each connection.
#[expect(clippy::manual_async_fn, reason = "smaller")]
pub(super) fn serve<C: Client + Unpin>(
    connection: Connection,
    client: C,
    peer: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    async move {
        let Some(preface) = h1::serve(connection, client, peer, entry, target, shared.clone()).await else {
            return;
        };
        // Boxed, both of them: most connections have no use for this room.
        Box::pin(async {
            let Preface {
                connection,
                client,
                entry,
                early,
            } = *preface;
            session::serve(connection, client, early, peer, entry, target, shared).await;
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::super::tcp;
    use super::*;

    /// In bytes, of what each of them gives.
    fn size_of_one<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_two<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_six<A, B, C, D, E, G, F>(_: impl FnOnce(A, B, C, D, E, G) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_each_connection_costs_is_bounded() {
        let http = size_of_six(serve::<TcpStream>);
        let (tcp, relay) = (size_of_one(tcp::serve), size_of_two(tcp::go_on));
        assert!(http <= 784, "HTTP: {http}");
        // Whatever comes before the relay is elsewhere.
        assert!(tcp <= 256 && relay <= 256, "tcp: {tcp}, parked before: {relay}");
    }
}
