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

    /// In bytes.
    fn size_of_task<F: Future>(serve: impl FnOnce() -> F) -> usize {
        let _ = serve;
        size_of::<F>()
    }

    #[test]
    fn what_each_connection_costs_is_bounded() {
        let http = || serve::<TcpStream>(todo!(), todo!(), todo!(), todo!(), todo!(), todo!());
        let (tcp, relay) = (|| tcp::serve(todo!()), || tcp::go_on(todo!(), todo!()));
        let (http, tcp, relay) = (size_of_task(http), size_of_task(tcp), size_of_task(relay));
        assert!(http <= 800, "HTTP: {http}");
        // Whatever comes before the relay is elsewhere.
        assert!(tcp <= relay + 16 && tcp <= 288, "tcp: {tcp}, of them the relay {relay}");
    }
}
