"""The few unary etcd calls that the harness makes itself, over HTTP/2 written out by hand.

A probe must not pay for the start of a process: the time to the first answer after a restart would
be that of the client. Answers are read from DATA frames alone; a call that ends without one has
failed. Headers are sent without compression and answers' headers are not decoded.
"""

import socket
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class CallFailed(Exception):
    """No answer: nobody listens, the connection broke, or the server refused."""


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One protobuf field: bytes with their length, or a number."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    return _varint(number << 3) + _varint(int(value))


def decode(message):
    """Fields of a message by number: the last value of each; bytes stay bytes."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        result = shift = 0
        while True:
            byte = message[at]
            at += 1
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            fields[tag >> 3] = varint()
        elif tag & 7 == 2:
            length = varint()
            fields[tag >> 3] = message[at:at + length]
            at += length
        else:
            raise CallFailed("the answer has a field of unknown kind")
    return fields


class Client:
    """One connection to one member; calls one at a time."""

    def __init__(self, address, timeout=1.0):
        host, port = address.rsplit(":", 1)
        self.address, self.stream = address, -1
        try:
            self.socket = socket.create_connection((host, int(port)), timeout)
            self.socket.settimeout(timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        except OSError as error:
            raise CallFailed(str(error)) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def call(self, path, message, timeout=None):
        """The answer's message."""
        self.stream += 2
        if timeout is not None:
            self.socket.settimeout(timeout)
        head = _headers(path, self.address)
        body = b"\0" + struct.pack(">I", len(message)) + message
        try:
            self.socket.sendall(_frame(HEADERS, END_HEADERS, self.stream, head)
                                + _frame(DATA, END_STREAM, self.stream, body))
            answer = self._answer()
        except OSError as error:
            raise CallFailed(str(error)) from error
        if len(answer) < 5:
            raise CallFailed("the server refused the call")
        return decode(answer[5:])

    def _answer(self):
        answer = b""
        while True:
            kind, flags, stream, payload = self._read_frame()
            if kind == SETTINGS and not flags & ACK:
                self.socket.sendall(_frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.socket.sendall(_frame(PING, ACK, 0, payload))
            elif kind == GOAWAY or (kind == RST_STREAM and stream == self.stream):
                raise CallFailed("the server ended the call")
            elif stream == self.stream and kind in (DATA, HEADERS):
                answer += payload if kind == DATA else b""
                if flags & END_STREAM:
                    return answer

    def _read_frame(self):
        head = self._read(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        return kind, flags, int.from_bytes(head[5:], "big") & 0x7FFFFFFF, self._read(length)

    def _read(self, size):
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise CallFailed("the connection was closed")
            data += part
        return data

    def get(self, key=b"00000000", timeout=None):
        """A linearizable read of one key; returns (count, revision)."""
        return _count_and_revision(self.call("/etcdserverpb.KV/Range", field(1, key), timeout))

    def count(self, timeout=60.0):
        """The number of all keys, and the revision."""
        request = field(1, b"\0") + field(2, b"\0") + field(9, True)
        return _count_and_revision(self.call("/etcdserverpb.KV/Range", request, timeout))

    def compact(self, revision, physical=True, timeout=600.0):
        """Drops history below `revision`; with `physical` it returns when the space is free."""
        request = field(1, revision) + field(2, physical)
        self.call("/etcdserverpb.KV/Compact", request, timeout)


def _count_and_revision(answer):
    return answer.get(4, 0), decode(answer.get(1, b"")).get(3, 0)


def _frame(kind, flags, stream, payload):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def _headers(path, authority):
    def text(value):
        # Lengths up to 126 fit the prefix of seven bits.
        return bytes([len(value)]) + value.encode()

    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
              ("content-type", "application/grpc"), ("te", "trailers")]
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields)
