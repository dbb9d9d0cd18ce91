//! One client connection in http mode, by whichever version of HTTP the client speaks: it says so by TLS, or by how it begins.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Shared;
use super::core::Connection;
use super::h1::{self, Entry, Preface};
use super::session;
use super::wire::Client;

/// Serves one client from accept to close.
pub(super) async fn serve(
    connection: Connection,
    client: impl Client + Unpin,
    peer: SocketAddr,
    entry: Entry,
    target: u16,
    shared: Arc<Shared>,
) {
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
