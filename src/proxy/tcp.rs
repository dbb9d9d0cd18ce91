//! One client connection in tcp mode: admitted, connected to an endpoint, relayed, closed for one reason.

use tokio::net::TcpStream;

use super::core::Connection;
use super::relay::{self, IdleLimits};
use super::upstream::{self, Upstream};
use crate::routing::CloseReason;
use crate::sys::socket::{self, Liveness};

/// Serves one client from accept to close.
pub(super) async fn serve(mut connection: Connection, client: TcpStream, target: u16, liveness: &Liveness) {
    let reason = match Box::pin(begin(&mut connection, &client, target)).await {
        Ok(upstream) => {
            connection.hold(Some(upstream.lease.endpoint().id()));
            let timeouts = &connection.service().spec().timeouts;
            let limits = IdleLimits {
                idle: timeouts.idle,
                half_closed: timeouts.half_closed,
            };
            connection.grow_old();
            relay::relay(
                &connection,
                &client,
                &upstream.stream,
                limits,
                liveness,
                [Vec::new(), Vec::new()],
            )
            .await
        }
        Err(reason) => {
            socket::reset_on_close(&client);
            reason
        }
    };
    connection.close(reason);
}

/// From accept to a connected endpoint. Boxed by its caller: most of a connection's life needs none of this state.
async fn begin(connection: &mut Connection, client: &TcpStream, target: u16) -> Result<Upstream, CloseReason> {
    connection.admit().await?;
    let connection = &*connection;
    let mut tried = Vec::new();
    tokio::select! {
        biased;
        result = upstream::connect(connection.service(), target, &mut tried, |_| None) => result,
        reason = connection.ended() => Err(reason),
        // A client that waits may lose patience; one that has only ended its half has not.
        _ = client.ready(tokio::io::Interest::ERROR) => Err(CloseReason::ClientRst),
    }
}
