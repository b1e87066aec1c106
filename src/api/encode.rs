//! Answers of the KV service, written straight into the frame.
//!
//! The state hands out pairs that are encoded already, so an answer is a header and a copy. Field
//! numbers are those of `proto/etcd/rpc.proto`. What the state left out, because no message takes it,
//! makes the answer a refusal that tells the whole size.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::grpc::{FrameBuilder, PREFIX_BYTES, check_answer_size};
use super::status::Status;
use crate::pb::etcdserverpb::ResponseHeader;
use crate::pb::mvccpb::KeyValue;
use crate::state::{RangeAnswer, Response, TxnAnswer};

/// Room for a header and the small fields beside it.
const SMALL_FIELDS_BYTES: usize = 96;

/// The framed answer of a write or a Txn, of at most `bytes_max` bytes.
pub(crate) fn response(
    header: &ResponseHeader,
    response: &Response,
    bytes_max: usize,
) -> Result<Bytes, Status> {
    if let Response::Range(answer) = response {
        return range(header, answer, bytes_max);
    }
    let mut frame = FrameBuilder::with_capacity(SMALL_FIELDS_BYTES);
    put_header(frame.buffer(), header);
    put_response(frame.buffer(), response);
    finish(frame, left_out(response), bytes_max)
}

/// The framed answer of a Range, of at most `bytes_max` bytes.
pub(crate) fn range(
    header: &ResponseHeader,
    answer: &RangeAnswer,
    bytes_max: usize,
) -> Result<Bytes, Status> {
    let mut frame = FrameBuilder::with_capacity(SMALL_FIELDS_BYTES + answer.kvs.len());
    put_header(frame.buffer(), header);
    put_range(frame.buffer(), answer);
    finish(frame, answer.left_out, bytes_max)
}

/// The framed answer of a Txn, of at most `bytes_max` bytes.
pub(crate) fn txn(
    header: &ResponseHeader,
    answer: &TxnAnswer,
    bytes_max: usize,
) -> Result<Bytes, Status> {
    let mut frame = FrameBuilder::with_capacity(SMALL_FIELDS_BYTES);
    put_header(frame.buffer(), header);
    put_txn(frame.buffer(), answer);
    finish(frame, left_out_of_txn(answer), bytes_max)
}

/// Refuses an answer that is too large, with the bytes that are not in it.
fn finish(frame: FrameBuilder, left_out: usize, bytes_max: usize) -> Result<Bytes, Status> {
    let frame = frame.finish();
    check_answer_size(frame.len() - PREFIX_BYTES + left_out, bytes_max)?;
    Ok(frame)
}

/// Bytes of pairs that `response` does without.
fn left_out(response: &Response) -> usize {
    match response {
        Response::Put(answer) => answer.left_out,
        Response::DeleteRange(answer) => answer.left_out,
        Response::Range(answer) => answer.left_out,
        Response::Txn(answer) => left_out_of_txn(answer),
        Response::Compact
        | Response::PublishMember
        | Response::LeaseGrant(_)
        | Response::LeaseRevoke(_)
        | Response::LeaseRenew(_)
        | Response::LeaseExpire(_) => 0,
    }
}

fn left_out_of_txn(answer: &TxnAnswer) -> usize {
    answer.responses.iter().map(|operation| left_out(&operation.response)).sum()
}

/// One framed part of a RangeStream; all but the last part carry pairs only.
pub(crate) fn range_part(header: Option<&ResponseHeader>, answer: &RangeAnswer) -> Bytes {
    let mut body = BytesMut::with_capacity(SMALL_FIELDS_BYTES + answer.kvs.len());
    match header {
        Some(header) => {
            put_header(&mut body, header);
            put_range(&mut body, answer);
        }
        None => body.extend_from_slice(&answer.kvs),
    }
    let mut frame = FrameBuilder::with_capacity(SMALL_FIELDS_BYTES + body.len());
    put_message(frame.buffer(), 1, &body);
    frame.finish()
}

/// The fields of a WatchResponse between its header and its events.
pub(super) fn put_watch(out: &mut impl BufMut, watch_id: i64, is_fragment: bool) {
    put_int(out, 2, watch_id);
    put_int(out, 7, i64::from(is_fragment));
}

/// Takes whole pairs off the front of `kvs`: as many as fit into `bytes_max`, and at least one.
pub(crate) fn split_pairs(kvs: &mut Bytes, bytes_max: usize) -> Bytes {
    let mut rest = &kvs[..];
    let mut taken = 0;
    while rest.has_remaining() {
        rest.advance(1);
        let length = decode_varint(&mut rest).expect("the state encoded these pairs");
        rest.advance(usize::try_from(length).expect("a pair is in memory"));
        let end = kvs.len() - rest.len();
        if taken > 0 && end > bytes_max {
            break;
        }
        taken = end;
    }
    kvs.split_to(taken)
}

/// The key of the last pair of an answer, to go on behind it.
pub(crate) fn last_key(answer: &RangeAnswer) -> Option<Bytes> {
    let mut rest = answer.kvs.clone();
    let mut last = Bytes::new();
    while rest.has_remaining() {
        rest.advance(1);
        let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
        last = rest.split_to(length);
    }
    Some(KeyValue::decode(last).ok()?.key).filter(|key| !key.is_empty())
}

/// Everything of `response` after its header.
fn put_response(out: &mut BytesMut, response: &Response) {
    match response {
        Response::Put(answer) => {
            if let Some(prev_kv) = &answer.prev_kv {
                put_message(out, 2, prev_kv);
            }
        }
        Response::DeleteRange(answer) => {
            put_int(out, 2, answer.deleted);
            for prev_kv in &answer.prev_kvs {
                put_message(out, 3, prev_kv);
            }
        }
        Response::Range(answer) => put_range(out, answer),
        Response::Txn(answer) => put_txn(out, answer),
        Response::LeaseGrant(term) => {
            put_int(out, 2, term.id);
            put_int(out, 3, term.ttl_seconds);
        }
        Response::Compact
        | Response::PublishMember
        | Response::LeaseRevoke(_)
        | Response::LeaseRenew(_)
        | Response::LeaseExpire(_) => {}
    }
}

fn put_range(out: &mut BytesMut, answer: &RangeAnswer) {
    out.extend_from_slice(&answer.kvs);
    put_int(out, 3, i64::from(answer.more));
    put_int(out, 4, answer.count);
}

fn put_txn(out: &mut BytesMut, answer: &TxnAnswer) {
    put_int(out, 2, i64::from(answer.succeeded));
    for operation in &answer.responses {
        // As in etcd: the headers of operations inside a Txn hold only the revision.
        let header = ResponseHeader { revision: operation.revision, ..ResponseHeader::default() };
        let response = &operation.response;
        let field = match response {
            Response::Range(_) => 1,
            Response::Put(_) => 2,
            Response::DeleteRange(_) => 3,
            Response::Txn(_) => 4,
            Response::Compact
            | Response::PublishMember
            | Response::LeaseGrant(_)
            | Response::LeaseRevoke(_)
            | Response::LeaseRenew(_)
            | Response::LeaseExpire(_) => continue,
        };
        let mut encoded = BytesMut::with_capacity(SMALL_FIELDS_BYTES);
        put_header(&mut encoded, &header);
        put_response(&mut encoded, response);
        let length = encoded.len();
        put_key(out, 3);
        encode_varint((1 + encoded_len_varint(length as u64) + length) as u64, out);
        put_message(out, field, &encoded);
    }
}

/// Field 1 of every answer.
pub(super) fn put_header(out: &mut impl BufMut, header: &ResponseHeader) {
    put_key(out, 1);
    encode_varint(header.encoded_len() as u64, out);
    header.encode_raw(out);
}

/// A length-delimited field.
fn put_message(out: &mut BytesMut, field: u8, message: &[u8]) {
    put_key(out, field);
    encode_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}

fn put_key(out: &mut impl BufMut, field: u8) {
    const LENGTH_DELIMITED: u8 = 2;
    out.put_u8(field << 3 | LENGTH_DELIMITED);
}

/// A varint field; zero is left out, as proto3 wants.
fn put_int(out: &mut impl BufMut, field: u8, value: i64) {
    if value != 0 {
        out.put_u8(field << 3);
        encode_varint(value.cast_unsigned(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_pairs_keeps_pairs_whole() {
        let mut kvs = BytesMut::new();
        for size in [3, 200, 4] {
            put_message(&mut kvs, 2, &vec![b'x'; size]);
        }
        let mut kvs = kvs.freeze();
        assert_eq!(split_pairs(&mut kvs.clone(), 1000), kvs);
        assert_eq!(split_pairs(&mut kvs, 10).len(), 5);
        assert_eq!(split_pairs(&mut kvs, 10).len(), 203);
        assert_eq!(split_pairs(&mut kvs, 10).len(), 6);
        assert!(kvs.is_empty());
    }
}
