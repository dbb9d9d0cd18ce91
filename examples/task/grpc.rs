//! The task's service of gRPC: `/anynode.test.Who/Is` says who it is, once; `/anynode.test.Who/Watch` as often as it is asked to, a message
//! in 20 ms.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use hyper::body::Incoming;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic_prost::ProstCodec;

/// How often to say it.
#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(uint32, tag = "1")]
    times: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Who {
    #[prost(string, tag = "1")]
    hostname: String,
}

struct Is(Who);

impl UnaryService<Ask> for Is {
    type Response = Who;
    type Future = std::future::Ready<Result<tonic::Response<Who>, tonic::Status>>;

    fn call(&mut self, _: tonic::Request<Ask>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new(self.0.clone())))
    }
}

struct Watch(Who);

impl ServerStreamingService<Ask> for Watch {
    type Response = Who;
    type ResponseStream = BoxStream<'static, Result<Who, tonic::Status>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Ask>) -> Self::Future {
        let who = self.0.clone();
        let messages = stream::unfold((who, request.into_inner().times), |(who, left)| async move {
            let left = left.checked_sub(1)?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok(who.clone()), (who, left)))
        });
        std::future::ready(Ok(tonic::Response::new(Box::pin(messages))))
    }
}

pub(crate) async fn answer(
    request: hyper::Request<Incoming>,
    hostname: String,
) -> Result<hyper::Response<tonic::body::Body>, Infallible> {
    let who = Who { hostname };
    let mut grpc = Grpc::new(ProstCodec::default());
    Ok(match request.uri().path() {
        "/anynode.test.Who/Is" => grpc.unary(Is(who), request).await,
        "/anynode.test.Who/Watch" => grpc.server_streaming(Watch(who), request).await,
        path => tonic::Status::unimplemented(path).into_http(),
    })
}
