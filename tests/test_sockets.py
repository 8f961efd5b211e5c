"""What no HTTP library sends, on plain sockets: bad framing, floods, slow clients. None may hurt another."""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import shutil
import socket
import struct

import pytest
from processes import Server
from servers import ask_in_turn, connect, read_all, wait_until

import course_api

pytestmark = pytest.mark.sqlite
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LENGTH, ENCODING = POST + b"Content-Length: 2\r\n", POST + b"Content-Length: 2\r\nTransfer-Encoding:"
CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n"
TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(256))


@pytest.fixture(scope="module")
def api(seeded_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sockets")
    shutil.copy(seeded_file, folder)
    with contextlib.closing(Server(folder)) as server:
        yield server


def split(data):
    """Return the status and the error of each response."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        assert b"Content-Type: application/json" in head and b"Server:" not in head and b"waitress" not in head.lower()
        status, body, data = int(head.split()[1]), json.loads(data[:length]), data[length:]
        assert list(body) == (["error"] if status >= 400 else ["status"])
        found.append((status, body.get("error")))
    return found


def exchange(api, data):
    """Send bytes on a connection of their own, and no more; return each response, up to where the server closes."""
    received = []
    with connect(api.url) as connection:
        with contextlib.suppress(OSError):  # the server may have closed already
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            received.extend(iter(lambda: connection.recv(65536), b""))
    return split(b"".join(received))


def statuses(api, data):
    return [status for status, _ in exchange(api, data)]


def is_well(api):
    return api.request("/health") == (200, '{"status": "ok"}')


# -- Requests that are refused -----------------------------------------------------------------------------------------

REFUSED = {
    "lengths": [
        POST + b"Content-Length" + value + b"\r\n\r\n{}"
        for value in b": | : 2|: -2|: +2|: 0x2|: 0_2|: 2, 2|: \xb2|: 2\r\n 2|: 2\r\nContent-Length: 2".split(b"|")
    ],
    "encodings": [
        *(ENCODING + value + b"\r\n\r\n{}" for value in (b" \x0bchunked", b" chunked", b" ,")),
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
        LENGTH + b"Transfer-Encoding : chunked\r\n\r\n{}",
        ENCODING + b"chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        CHUNKS.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    ],
    "chunks": [
        *(
            CHUNKS + size + b"\r\n{}\r\n0\r\n\r\n"
            for size in b"-2|+2|0x2|0_2| 2|2 ||two|2;\0|1|3|2\n|2;a\n".split(b"|")
        ),
        *(CHUNKS + line for line in (b"2\n{}\n0\n\n", b"2;" + b"a" * 2000, b"0\r\nX: " + b"a" * 2000)),
        CHUNKS + b"2\r\n{}\r\n",
    ],
    "request lines": [
        GET.replace(*change)
        for change in (
            *((b"GET", method) for method in (b"get", b"GET ", b"GET\t", b"", b"GET\0")),
            *((b"/health", path) for path in (b"/health\r", b"http://[", b"http://[::1/health", b"http://[/health")),
            *((b"HTTP/1.1", version) for version in (b"HTTP/1.1.1", b"http/1.1")),
        )
    ],
    "headers": [
        *(GET[:-2] + header + b"\r\n\r\n" for header in (b"X", b": a", b"X: a\0b", b"X\0: a", b"X: a\nY: b")),
        GET[:-2] + b"X: a\rY: b\r\n\r\n",
        GET.replace(b"Host", b" Host"),
        GET.replace(b"\r\n", b"\n"),
        *(GET.replace(b"Host: a\r\n", hosts) for hosts in (b"", b"Host: a\r\nHost: a\r\n", b"Host:\r\nhost:\r\n")),
        GET[:-2] + b"".join(b"X%d: a\r\n" % number for number in range(100)) + b"\r\n",
    ],
    "other protocols": [
        *(TLS_HELLO, TLS_HELLO + b"\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\0" * 1000, bytes(range(256))),
    ],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_framing_is_a_400_and_nothing_behind_it_is_believed(api, kind):
    """A good request follows on the same connection. It may have become part of the bad one, and is not answered."""
    assert {bad: statuses(api, bad + GET) for bad in REFUSED[kind]} == {bad: [400] for bad in REFUSED[kind]}
    assert is_well(api)


def test_a_client_of_https_is_not_left_waiting(api):
    with connect(api.url) as connection:
        connection.sendall(TLS_HELLO)
        assert b"this port speaks HTTP, not HTTPS" in read_all(connection)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (GET[:-2] + b"X: y\r\n" * 10_000 + b"\r\n", 431),
        (GET.replace(b"health", b"x" * 1_000_000), 431),
        (b"x" * 1_000_000, 431),
        (CHUNKS + b"0" * 100_000, 400),
        (POST + b"Content-Length: 20000000\r\n\r\n", 413),
        (POST + b"Content-Length: 20000000\r\n\r\n" + b"x" * 20_000_000, 413),
        (CHUNKS + (b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n") * 20 + b"0\r\n\r\n", 413),
    ],
    ids=["headers", "path", "line", "chunk head", "length", "body", "chunks"],
)
def test_too_much_is_refused(api, data, status):
    """A client that goes on to send may meet a reset before it has read why."""
    assert statuses(api, data) in ([status], [])
    assert is_well(api)


def test_blanks_in_a_header_are_refused_before_they_take_long(api):
    blanks = GET[:-2] + b"X:" + b" " * 31_000 + b"\0\r\n\r\n"
    assert exchange(api, blanks) == [(400, "Bad Request: there are too many blanks in the headers")]


# -- Requests that can be read in more than one way --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ENCODING + b" xchunked\r\n\r\n{}" + GET, [501]),
        (ENCODING + b" gzip, chunked\r\n\r\n{}" + GET, [501]),
        (ENCODING + b" chunked, identity\r\n\r\n{}" + GET, [501]),
        (POST + b"Content-Length: 1\r\n\r\n{}" + GET, [400, 400]),  # the second begins with "}"
        (POST + b"Content-Length: 5000\r\n\r\n{}" + GET, []),  # the rest never comes
        (GET.replace(b" HTTP/1.1\r\nHost: a\r\n", b"\r\n") + GET, [200]),  # without a version: the last request
        (GET.replace(b"/health", b"http://a.example/health") + GET, [200, 200]),  # RFC 9112 §3.2.2
        (b"\r\n" * 10_000 + GET, [200]),
        (GET.replace(b"/health", b"/health\0") + GET.replace(b"/health", b"/health%00"), [400, 400]),
        (GET[:-2] + b"X: a\r\n b\r\n\r\n", [200]),  # a folded header is one header (RFC 9112 §5.2)
        (CHUNKS + b"2;a=b\r\n{}\r\n0\r\nX: trailer\r\n\r\n" + GET, [400, 200]),  # the body is {}
        (GET.replace(b"1.1", b"1.0") + GET, [200]),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET, [200]),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: TE, Close\r\n\r\n") + GET, [200]),
        (GET.replace(b"\r\n\r\n", b"\r\nConnection: TE, keep-alive\r\n\r\n") + GET, [200, 200]),
        (GET.replace(b"Host: a", b"Host:") + GET, [200, 200]),
        (GET.replace(b"/health", b"/health?q=Z\xc3\xbcrich") + GET, [200, 200]),
        (GET.replace(b"/health", b"/health?q=Z\xfcrich") + GET, [200, 200]),  # the app judges the query
        (GET.replace(b"/health", b"/Z\xc3\xbcrich") + GET.replace(b"/health", b"/Z\xfcrich"), [404, 400]),
    ],
)
def test_a_request_is_read_as_the_rfc_says(api, data, expected):
    assert statuses(api, data) == expected


def test_a_connection_stays_open_after_a_response_without_a_body(api):
    headers = api.bearer() | {"Content-Type": "application/json"}
    course = '{"name": "Basics"}'
    requests = [(method, "/courses/CSE115", course, headers) for method in ("PATCH", "GET", "DELETE", "GET")]
    responses = ask_in_turn(api.url, requests)
    assert [status for status, _ in responses] == [204, 200, 204, 404]
    assert not any("Connection" in headers for _, headers in responses)


def test_a_response_without_a_body_closes_the_connection_if_the_client_asks_for_it(api):
    with connect(api.url) as connection:
        connection.sendall(b"OPTIONS /courses HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 204 ")


def test_raw_utf_8_in_a_query_is_as_if_it_were_percent_encoded(api):
    with connect(api.url) as connection:
        head = f"GET /courses?q=Z\xfcrich&limit=1 HTTP/1.1\r\nHost: a\r\nAuthorization: {api.bearer()['Authorization']}"
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        assert b"?q=Z%C3%BCrich&limit=1" in read_all(connection)


# -- Large bodies ------------------------------------------------------------------------------------------------------

UPLOAD, CHANGE = POST.replace(b"/login", b"/courses"), POST.replace(b"POST /login", b"PUT /courses/CSE115")
TOO_LARGE = {"too large": b"Content-Length: 65537\r\n\r\n", "much": b"Content-Length: 16777216\r\n\r\n"}
TOO_LARGE["huge"] = b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n"
TOO_LARGE["expected"] = b"Expect: 100-continue\r\n" + TOO_LARGE["much"]
TOO_LARGE["chunks"] = b"Transfer-Encoding: chunked\r\n\r\n" + (b"2000\r\n" + b"x" * 8192 + b"\r\n") * 9
TOO_LARGE["sent"] = TOO_LARGE["much"] + b"x" * 2**24


@pytest.mark.parametrize("body", TOO_LARGE)
@pytest.mark.parametrize(("head", "status"), [(POST, 413), (CHANGE, 413), (UPLOAD, 401)])
def test_a_large_body_is_refused_before_it_is_sent_and_the_client_can_read_why(api, body, head, status):
    with connect(api.url) as connection:
        connection.sendall(head + TOO_LARGE[body])
        response = read_all(connection)
    assert response.startswith(b"HTTP/1.1 %d " % status) and b"\r\nConnection: close\r\n" in response
    assert (b"\r\nWww-Authenticate: Bearer\r\n" in response) == (status == 401)
    assert is_well(api)


@pytest.mark.parametrize("framing", ["Content-Length: 16777217", "Transfer-Encoding: chunked"])
def test_a_token_allows_an_upload_of_16_mib_and_no_more(api, framing):
    rows = b"code,name,instructor\r\n"
    chunks = [b"%x\r\n%b\r\n" % (2**20, rows.ljust(2**20)), *[b"%x\r\n%b\r\n" % (2**20, b" " * 2**20)] * 16]
    body = b"".join(chunks) + b"0\r\n\r\n" if "chunked" in framing else b""
    head = UPLOAD.decode() + f"Authorization: {api.bearer()['Authorization']}\r\n{framing}\r\n\r\n"
    assert exchange(api, head.encode() + body) == [
        (413, "the body is larger than 16 MiB; send the courses in several requests")
    ]


def test_a_body_of_64_kib_is_read_however_it_is_sent(api):
    whole = b'{"username": "faisal", "password": "wrong"}'.ljust(2**16)
    chunks = b"".join(b"10\r\n%b\r\n" % whole[start : start + 16] for start in range(0, 2**16, 16))
    assert statuses(api, POST + b"Content-Length: 65536\r\n\r\n" + whole + GET) == [400, 200]
    assert statuses(api, CHUNKS + chunks + b"0\r\n\r\n" + GET) == [400, 200]


def test_too_many_large_uploads_that_arrive_at_once_are_a_503(api):
    head = UPLOAD.decode() + f"Authorization: {api.bearer()['Authorization']}\r\nContent-Length: 100000\r\n\r\n"
    with connections(api, course_api.MAX_UPLOADS) as opened:
        for connection in opened:
            connection.sendall(head.encode() + b" ")
        wait_until(lambda: statuses(api, head.encode()) == [503])
    wait_until(lambda: statuses(api, head.encode()) == [])  # there is room again: it waits for the body


def test_refusals_can_be_read_by_pages_of_other_origins(start):
    api = start(CORS_ORIGINS="https://a.example")
    origin = b"Origin: https://a.example\r\n"
    for data in (
        POST + origin + b"Content-Length: 70000\r\n\r\n",
        GET[:-2] + origin + b"X: " + b"x" * 40_000 + b"\r\n\r\n",
        GET[:-2] + origin + b"Host: a\r\n\r\n",
    ):
        for sent, allowed in ((data, True), (data.replace(b"a.example", b"b.example"), False)):
            with connect(api.url) as connection:
                connection.sendall(sent)
                response = read_all(connection)
            assert response[9:12] in (b"413", b"431", b"400")
            assert (b"\r\nAccess-Control-Allow-Origin: https://a.example\r\n" in response) == allowed


def test_a_part_of_a_file_is_the_whole_file(api):
    assert api.request("/docs", Range="bytes=0-1") == api.request("/docs")
    assert api.request("/docs", Range="bytes=99999999-")[0] == 200


# -- Clients that are slow, or go away ---------------------------------------------------------------------------------


@contextlib.contextmanager
def connections(api, number):
    """Open so many for the block; reset each at the end, as a client that crashes does."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(api.url)) for _ in range(number)]
        yield opened
        for connection in opened:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    "whole", [GET, LENGTH + b"\r\n{}", CHUNKS + b"2\r\n{}\r\n0\r\n\r\n"], ids=["GET", "POST", "chunks"]
)
def test_a_request_that_is_slow_or_cut_off_anywhere_holds_up_nobody(api, whole):
    """One client sends a byte at a time. For each of its bytes, two others have sent no more when they are reset."""
    with connect(api.url) as slow, connections(api, 2 * len(whole)) as opened:
        for length in range(len(whole)):
            slow.sendall(whole[length : length + 1])
            for connection in opened[2 * length : 2 * length + 2]:
                connection.sendall(whole[:length])
            assert is_well(api)
        slow.shutdown(socket.SHUT_WR)
        assert len(split(read_all(slow))) == 1
    assert is_well(api)


def test_a_request_that_stalls_is_closed_sooner_than_an_idle_connection(start):
    program = "import course_api, server; server.STALL_SECONDS = 0; server.WAITRESS_OPTIONS['cleanup_interval'] = 0"
    api = start("-c", f"{program}; course_api.main()")
    with connect(api.url) as idle, connect(api.url) as half, connect(api.url) as unfinished:
        idle.sendall(GET.replace(b"GET", b"HEAD"))
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        half.sendall(GET[:20])
        unfinished.sendall(LENGTH + b"\r\n{")
        assert read_all(half) == read_all(unfinished) == b""
        idle.sendall(GET.replace(b"GET", b"HEAD"))
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_make_room_where_there_are_too_many(start):
    program = "import course_api, server; server.MAX_CONNECTIONS = 20; server.CROWDED_SECONDS = 0"
    api = start("-c", f"{program}; server.WAITRESS_OPTIONS['cleanup_interval'] = 0; course_api.main()")
    with connections(api, 40):
        assert is_well(api)


BUNDLE = GET.replace(b"/health", b"/docs/swagger_bundle.js")


def bytes_that_wait(connection):
    """Return the beginning of what a client could read."""
    with contextlib.suppress(BlockingIOError):
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def test_clients_that_read_nothing_hold_up_nobody(start):
    """Each asks for more than the system's buffers take, and for more than waitress would keep for it."""
    api = start(THREADS="1")
    with connections(api, 10) as opened:
        for connection in opened:
            connection.sendall(BUNDLE * 100)
        wait_until(lambda: all(bytes_that_wait(connection) for connection in opened))
        assert is_well(api)


def test_a_client_that_reads_late_gets_all_responses_in_order(api):
    with connect(api.url) as connection:
        connection.sendall(BUNDLE * 10 + GET)
        wait_until(lambda: bytes_that_wait(connection))
        assert is_well(api)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 11 and received.endswith(b'{"status": "ok"}')


def test_a_client_that_pipelines_without_end_does_not_keep_the_others_waiting(api):
    with connect(api.url) as endless, concurrent.futures.ThreadPoolExecutor() as pool:
        endless.sendall(5_000 * GET)
        endless.shutdown(socket.SHUT_WR)
        responses = pool.submit(read_all, endless)
        assert api.request("/health")[0] == 200
        assert not responses.done()
        assert responses.result().count(b"HTTP/1.1 200 OK") == 5_000


def test_a_client_that_reads_nothing_is_hung_up_on(start):
    program = "import course_api, server; server.STALL_SECONDS = 0; server.WAITRESS_OPTIONS['cleanup_interval'] = 0"
    api = start("-c", f"{program}; course_api.main()")
    files = pathlib.Path(f"/proc/{api.process.pid}/fd")
    before = len(list(files.iterdir()))
    with connect(api.url) as connection:
        connection.sendall(BUNDLE * 10)
        wait_until(lambda: bytes_that_wait(connection))
        wait_until(lambda: len(list(files.iterdir())) == before)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") < 10
