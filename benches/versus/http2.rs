//! The generator's HTTP/2: requests for small bodies, several at a time on one connection, every byte of each verified.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::load::{Progress, endpoint_of, next_id};
use crate::origin::HOST;

/// Asks until it is over.
///
/// Errors: the first request that fails, and a connection that ends.
pub async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    n_at_a_time: usize,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (requests, connection) = client::handshake(stream).await.context("HTTP/2")?;
    let mut connection = pin!(connection);
    let loops = futures_util::future::try_join_all((0..n_at_a_time).map(|_| {
        let mut requests = requests.clone();
        async move {
            while !progress.is_over.get() {
                one(&mut requests, progress).await?;
            }
            anyhow::Ok(())
        }
    }));
    let mut loops = pin!(loops);
    std::future::poll_fn(|cx| {
        let ended = connection.as_mut().poll(cx);
        if let Poll::Ready(done) = loops.as_mut().poll(cx) {
            return Poll::Ready(done.map(drop));
        }
        // What the loops have written is sent now, and not when something comes.
        let ended = match ended {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending => connection.as_mut().poll(cx),
        };
        ended.map(|ended| {
            ended.context("the connection")?;
            anyhow::bail!("the connection ended")
        })
    })
    .await
}

async fn one(requests: &mut SendRequest<Bytes>, progress: &Progress) -> anyhow::Result<()> {
    let id = next_id();
    let request = Request::get(format!("https://{HOST}/h/{id}"))
        .header("user-agent", "versus")
        .header("accept", "*/*")
        .body(())?;
    futures_util::future::poll_fn(|cx| requests.poll_ready(cx)).await?;
    let (answer, _) = requests.send_request(request, true).context("send a request")?;
    let (head, mut coming) = answer.await.context("read an answer")?.into_parts();
    ensure!(head.status == 200, "an answer with status {}", head.status);
    let mut body = Vec::new();
    while let Some(data) = coming.data().await {
        let data = data.context("read a body")?;
        coming.flow_control().release_capacity(data.len())?;
        progress.n_bytes.set(progress.n_bytes.get() + data.len() as u64);
        body.extend_from_slice(&data);
    }
    endpoint_of(&body, id)?;
    progress.n_units.set(progress.n_units.get() + 1);
    Ok(())
}
