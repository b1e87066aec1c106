//! A gRPC client that knows no messages: bytes go in, bytes or a status come out.
//!
//! Every method is called as a server stream, because a unary answer has the same shape on the wire.
//! So malformed bodies and unknown methods take the same way as honest requests.

use bytes::{Buf, BufMut, Bytes};
use futures_util::StreamExt;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// One metadata entry of a request.
pub(crate) type Metadata = (String, Bytes);

/// A connection to one member.
#[derive(Clone, Debug)]
pub(crate) struct Client {
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
        Client { grpc: Grpc::new(channel).max_decoding_message_size(usize::MAX) }
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
        let path = PathAndQuery::try_from(path).expect("a method is a path");
        let mut request = Request::new(body);
        for (name, value) in metadata {
            let name = AsciiMetadataKey::from_bytes(name.as_bytes()).expect("a metadata name");
            let value = AsciiMetadataValue::try_from(value.as_ref()).expect("a metadata value");
            request.metadata_mut().append(name, value);
        }
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let response = self.grpc.server_streaming(request, path, BytesCodec).await?;
        let mut stream = response.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await {
            messages.push(message?);
        }
        Ok(messages)
    }
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
