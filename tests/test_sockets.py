"""What no HTTP library sends: lies, garbage, floods and dawdling, on plain sockets. None may hurt another client."""

import contextlib
import json
import re
import socket
import struct
import threading
import time

import pytest
from conftest import Server
from test_server import connect, read_all

GOOD = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(256))


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with contextlib.closing(Server(tmp_path_factory.mktemp("sockets"))) as server:
        yield server


def split(data):
    """Return the status and the body of each answer; hold those of errors to their shape."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        status, body, data = int(head.split()[1]), json.loads(data[:length]), data[length:]
        assert list(body) == (["error"] if status >= 400 else ["status"])
        found.append((status, body.get("error")))
    return found


def exchange(api, data):
    """Send bytes on a connection of their own, and no more; return each answer, up to where the server closes."""
    with connect(api) as connection:
        with contextlib.suppress(ConnectionError):  # it has closed already
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        received = []
        with contextlib.suppress(ConnectionError):
            received.extend(iter(lambda: connection.recv(65536), b""))
    return split(b"".join(received))


def statuses(api, data):
    return [status for status, _ in exchange(api, data)]


def is_well(api):
    return api.request("/health") == (200, '{"status": "ok"}')


# -- Requests that are refused -----------------------------------------------------------------------------------------

REFUSED = {
    "a length larger than the body": POST + b"Content-Length: 5000\r\n\r\n{}",
    "a length smaller than the body": POST + b"Content-Length: 1\r\n\r\n{}",
    "a body without a length": POST + b"\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 36\r\n\r\n{}",
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "lengths in a list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "an empty length": POST + b"Content-Length:\r\n\r\n{}",
    "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with an underscore": POST + b"Content-Length: 0_2\r\n\r\n{}",
    "a length of other digits": POST + "Content-Length: ²\r\n\r\n{}".encode("latin1"),
    "a length of 5000 digits": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "a length on two lines": POST + b"Content-Length: 2\r\n 2\r\n\r\n{}",
    "a space after the name of the length": POST + b"Content-Length : 2\r\n\r\n{}",
    "a length of an unknown encoding": POST + b"Content-Length: 2\r\nTransfer-Encoding: xchunked\r\n\r\n{}",
    "an encoding behind another": POST + b"Content-Length: 2\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{}",
    "an encoding before another": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked, identity\r\n\r\n{}",
    "an encoding behind a vertical tab": POST + b"Content-Length: 2\r\nTransfer-Encoding: \x0bchunked\r\n\r\n{}",
    "a space after the name of the encoding": POST + b"Content-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\n{}",
    "a negative chunk": CHUNKS + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a sign": CHUNKS + b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a prefix": CHUNKS + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk with an underscore": CHUNKS + b"0_2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a space before": CHUNKS + b" 2\r\n{}\r\n0\r\n\r\n",
    "a chunk with a space behind": CHUNKS + b"2 \r\n{}\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKS + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk of no number": CHUNKS + b"two\r\n{}\r\n0\r\n\r\n",
    "a chunk of 5000 digits": CHUNKS + b"f" * 5000 + b"\r\n{}\r\n0\r\n\r\n",
    "a chunk with a bad extension": CHUNKS + b"2;\0\r\n{}\r\n0\r\n\r\n",
    "a chunk larger than it says": CHUNKS + b"1\r\n{}\r\n0\r\n\r\n",
    "a chunk smaller than it says": CHUNKS + b"3\r\n{}\r\n0\r\n\r\n",
    "a chunk that ends in a line feed": CHUNKS + b"2\n{}\n0\n\n",
    "chunks that never end": CHUNKS + b"2\r\n{}\r\n",
    "chunks of nothing but digits": CHUNKS + b"0" * 100_000,
    "10,000 headers": GOOD[:-2] + b"X: y\r\n" * 10_000 + b"\r\n",
    "10,000 empty headers": GOOD[:-2] + b"X:\r\n" * 10_000 + b"\r\n",
    "a request line of 1 MB": b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a query of 1 MB": b"GET /health?" + b"a=b&" * 250_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method of 1 MB": b"G" * 1_000_000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n",
    "1 MB without a line": b"x" * 1_000_000,
    "NUL in a header": GOOD[:-2] + b"X: a\0b\r\n\r\n",
    "NUL in the name of a header": GOOD[:-2] + b"X\0: a\r\n\r\n",
    "NUL in the method": b"GET\0 /health HTTP/1.1\r\nHost: a\r\n\r\n",
    "nothing but NUL": b"\0" * 1000,
    "line feeds only": GOOD.replace(b"\r\n", b"\n"),
    "a line feed in a header": GOOD[:-2] + b"X: a\nY: b\r\n\r\n",
    "a carriage return in a header": GOOD[:-2] + b"X: a\rY: b\r\n\r\n",
    "a carriage return in the request line": GOOD.replace(b"/health", b"/health\r"),
    "a first header that is folded": GOOD.replace(b"Host", b" Host"),
    "a header without a colon": GOOD[:-2] + b"X\r\n\r\n",
    "a header without a name": GOOD[:-2] + b": a\r\n\r\n",
    "a method in small letters": GOOD.replace(b"GET", b"get"),
    "two spaces": GOOD.replace(b"GET ", b"GET  "),
    "a tab": GOOD.replace(b"GET ", b"GET\t"),
    "no path": GOOD.replace(b"/health ", b""),
    "no method": GOOD.replace(b"GET ", b""),
    "a version of three numbers": GOOD.replace(b"1.1", b"1.1.1"),
    "a version in small letters": GOOD.replace(b"HTTP", b"http"),
    "an address that is half an IPv6 one": GOOD.replace(b"/health", b"http://[::1/health"),
    "a host that is no IPv6 one": GOOD.replace(b"/health", b"http://[a]/health"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": TLS_HELLO,
    "TLS with an empty line": TLS_HELLO + b"\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "every byte": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_and_nothing_behind_it_is_believed(api, name):
    """A good request follows on the same connection. It may have become part of the bad one, and is not answered."""
    assert set(statuses(api, REFUSED[name] + GOOD)) <= {400, 404, 413, 431, 501}
    assert is_well(api)


# -- Requests that can be read in more than one way --------------------------------------------------------------------


@pytest.mark.parametrize("version", [b"1.0", b"1.1", b"1.2"])
def test_chunks_with_a_length_are_refused(api, version):
    """RFC 9112 §6.1: a proxy in front may have read it another way; no HTTP/1.0 has chunks at all."""
    head = CHUNKS.replace(b"1.1", version).replace(
        b"\r\n\r\n", b"\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n"
    )
    assert statuses(api, head + b"0\r\n\r\n" + GOOD) == [400]


def test_a_folded_header_is_one_header_or_refused(api):
    """RFC 9112 §5.2."""
    assert statuses(api, GOOD[:-2] + b"X: a\r\n b\r\n\r\n") in ([200], [400])


def test_a_request_without_a_version_is_the_last_one(api):
    assert statuses(api, b"GET /health\r\n\r\n" + GOOD) == [200]


def test_the_address_may_be_absolute(api):
    """RFC 9112 §3.2.2."""
    assert statuses(api, GOOD.replace(b"/health", b"http://a.example/health") + GOOD) == [200, 200]


def test_nul_in_a_path_is_part_of_it(api):
    assert statuses(api, GOOD.replace(b"/health", b"/health\0") + GOOD.replace(b"/health", b"/health%00")) == [404, 404]


def test_empty_lines_before_a_request_are_none(api):
    assert statuses(api, b"\r\n" * 10_000 + GOOD) == [200]


# -- Clients that dawdle, or go ----------------------------------------------------------------------------------------

REQUESTS = [GOOD, POST + b"Content-Length: 2\r\n\r\n{}", CHUNKS + b"2\r\n{}\r\n0\r\n\r\n"]


@contextlib.contextmanager
def connections(api, number):
    """Open so many; reset each at the end, as a client that crashes."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(api)) for _ in range(number)]
        yield opened
        for connection in opened:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("request_bytes", REQUESTS, ids=["GET", "POST", "chunks"])
def test_a_request_that_is_cut_off_anywhere_holds_up_nobody(api, request_bytes):
    with connections(api, len(request_bytes)) as opened:
        for length, connection in enumerate(opened):
            connection.sendall(request_bytes[:length])
        assert is_well(api)
    assert is_well(api)


def test_clients_that_go_before_the_answer_hurt_nobody(api):
    with connections(api, 100) as opened:
        for connection in opened:
            connection.sendall(GOOD * 20)
    assert is_well(api)


def test_three_hundred_slow_clients_hold_up_nobody(api):
    """A third leaves a request half sent, the others send one a byte at a time. Meanwhile others are answered."""
    whole, answered = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 0
    with connections(api, 100) as half, connections(api, 200) as slow:

        def dawdle():
            for place in range(len(whole)):
                for connection in slow if place > 20 else half + slow:
                    connection.sendall(whole[place : place + 1])
                time.sleep(0.02)

        thread = threading.Thread(target=dawdle)
        thread.start()
        while is_well(api) and thread.is_alive():
            answered += 1
        thread.join()
        assert answered > 10
        assert all(split(read_all(connection)) == [(200, None)] for connection in slow)
        assert is_well(api)


def test_white_space_in_a_header_is_refused_before_it_takes_long(api):
    blanks = GOOD[:-2] + b"X:" + b" " * 31_000 + b"\0\r\n\r\n"
    assert exchange(api, blanks)[0] == (400, "Bad Request: there are too many blanks in the headers")


def test_clients_that_ask_and_ask_and_read_nothing_hold_up_nobody(start):
    api = start(THREADS="1")
    with connections(api, 20) as opened:
        for connection in opened:
            connection.sendall(GOOD.replace(b"/health", b"/docs/swagger_bundle.js") * 100)
            time.sleep(0.05)
        with connect(api) as connection:
            connection.settimeout(3)
            connection.sendall(GOOD)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("tail", [b"0" * 9000, b"0\r\n" + b"x" * 9000, b"1;" + b"a" * 9000])
def test_the_head_of_a_chunk_that_does_not_end_is_refused(api, tail):
    assert exchange(api, CHUNKS + tail)[0] == (400, "Bad Request: the head of a chunk is too long")


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.replace(b"/health", b"http://["),
        GOOD.replace(b"/health", b"http://[x]/health"),
        GOOD[:-2] + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        GOOD[:-2] + b"Transfer-Encoding: ,\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_what_python_cannot_make_a_number_or_an_address_of_is_a_bad_request(api, bad):
    assert statuses(api, bad + GOOD) == [400]


def test_a_part_of_a_file_is_the_whole_file(api):
    assert api.request("/docs", Range="bytes=0-1") == api.request("/docs")
    assert api.request("/docs", Range="bytes=99999999-")[0] == 200
