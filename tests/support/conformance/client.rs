//! A gRPC client that knows no messages: bytes go in, bytes or a status come out.
//!
//! Every method is called as a stream, because a unary answer has the same shape on the wire.
//! So malformed bodies and unknown methods take the same way as honest requests.

use std::future::poll_fn;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc::UnboundedSender;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// One metadata entry of a request.
pub(crate) type Metadata = (String, Bytes);

/// An answer below gRPC.
#[derive(Clone, Debug)]
pub(crate) struct HttpAnswer {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// Headers and trailers in one.
    pub(crate) fields: HeaderMap,
    /// The body.
    pub(crate) body: Bytes,
}

/// A connection to one member.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects to `endpoint`, a URL.
    pub(crate) async fn connect(endpoint: &str) -> Client {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .expect("an endpoint is a URL")
            .connect()
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {endpoint}: {error}"));
        let grpc = Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
        Client { channel, grpc }
    }

    /// Sends one HTTP/2 request whose body holds gRPC's frames as they are given.
    ///
    /// # Errors
    /// The text of what broke the stream.
    pub(crate) async fn http(
        &mut self,
        method: &str,
        path: &str,
        body: Bytes,
        headers: &[Metadata],
    ) -> Result<HttpAnswer, String> {
        let mut request = http::Request::new(Body::new(Full::new(body)));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).expect("a method");
        *request.uri_mut() = path.parse().expect("a path");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            let value = HeaderValue::from_bytes(value).expect("a header value");
            request.headers_mut().append(name, value);
        }
        poll_fn(|context| GrpcService::poll_ready(&mut self.channel, context))
            .await
            .map_err(|error| error.to_string())?;
        let answer = GrpcService::call(&mut self.channel, request);
        let (head, body) = answer.await.map_err(|error| error.to_string())?.into_parts();
        let body = body.collect().await.map_err(|status| status.message().to_owned())?;
        let mut fields = head.headers;
        fields.extend(body.trailers().cloned().unwrap_or_default());
        Ok(HttpAnswer { status: head.status, fields, body: body.to_bytes() })
    }

    /// Sends one message to the method `path` and collects the messages of the answer.
    ///
    /// # Errors
    /// The status of the answer if it is not OK.
    pub(crate) async fn call(
        &mut self,
        path: &str,
        body: Bytes,
        metadata: &[Metadata],
    ) -> Result<Vec<Bytes>, Status> {
        let (request, path) = head(Request::new(body), path, metadata);
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let response = self.grpc.server_streaming(request, path, BytesCodec).await?;
        let mut stream = response.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await {
            messages.push(message?);
        }
        Ok(messages)
    }

    /// Sends `messages` to the method `path` while its answers go to `answers`.
    ///
    /// # Errors
    /// The status of the answer if it is not OK.
    pub(crate) async fn exchange(
        &mut self,
        path: &str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
        metadata: &[Metadata],
        answers: &UnboundedSender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let (request, path) = head(Request::new(messages), path, metadata);
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut stream = self.grpc.streaming(request, path, BytesCodec).await?.into_inner();
        while let Some(message) = stream.next().await {
            // The case may have dropped the call meanwhile.
            answers.send(Ok(message?)).ok();
        }
        Ok(())
    }
}

/// Puts `metadata` on `request` and reads `path`.
fn head<T>(
    mut request: Request<T>,
    path: &str,
    metadata: &[Metadata],
) -> (Request<T>, PathAndQuery) {
    let path = PathAndQuery::try_from(path).expect("a method is a path");
    for (name, value) in metadata {
        let name = AsciiMetadataKey::from_bytes(name.as_bytes()).expect("a metadata name");
        let value = AsciiMetadataValue::try_from(value.as_ref()).expect("a metadata value");
        request.metadata_mut().append(name, value);
    }
    (request, path)
}

/// The codec that leaves messages as they are.
#[derive(Clone, Copy, Debug)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
