"""DATABASE_URL: what it says in the drivers' terms, and how the server that it names is looked up.

No message shows any part of a password, and in a malformed URL that could be anything.
"""

import contextlib
import ipaddress
import re
import socket
import threading
import time
from urllib.parse import parse_qsl, urlsplit

import peewee
from playhouse import db_url

CONNECT_SECONDS = 1  # how long it may take to look up a database server's name, and to connect to it
BAD_OPTION = "an option of DATABASE_URL is unknown or has a bad value; percent-encode the password"


class UrlError(ValueError):
    """A URL that cannot be used; the message says why."""


def parse_sqlite_url(url):
    """Return the path of a SQLite URL's file, and the driver's options."""
    path = url.removeprefix("sqlite://").removeprefix("/").partition("?")[0]  # to the letter, with any "#"
    options = db_url.parse(url.replace("#", "%23"))
    return path, {name: value for name, value in options.items() if name != "database"}


def parse_server_url(url):
    """Return the label of a server's URL, which is safe to show, and the driver's options; raise ValueError."""
    label = make_label(url)
    url = url.replace("#", "%23")
    options = db_url.parse(url, unquote_password=True, unquote_user=True)
    texts = {name: text for name, text in parse_qsl(urlsplit(url).query) if name in ("user", "password", "passwd")}
    options |= texts  # Peewee makes numbers of digits
    if "passwd" in options:  # Peewee's name, which PyMySQL deprecates
        options["password"] = options.pop("passwd")
    return label, options


def make_label(url):
    """Return a server's URL without user, password and options: its scheme, host, port and database.

    Raises ValueError if a "/", "?" or "@" could belong to the password.
    """
    match = re.fullmatch(r"([a-z]+)://(?:[^/?]*@)?([^/?@]*/[^/?@]*)(?:\?[^@]*)?", url)
    if not match:
        raise ValueError("ambiguous")
    return f"{match[1]}://{match[2]}"


class Connector:
    """Limits how long the look-up of a server's name takes, and quotes no option that the driver refuses.

    The drivers' connect_timeout does not cover the look-up. This class stands between Peewee's pool and the class that
    connects, since only a new connection needs it.
    """

    def _connect(self):
        params = self.connect_params
        hosts = str(params.get("host") or "").split(",")  # PostgreSQL takes several
        silent = 0 if "hostaddr" in params else count_silent(hosts, CONNECT_SECONDS)
        self.connect_params = skip_hosts(params, silent)  # Peewee lets one thread connect at a time
        try:
            return super()._connect()
        except OSError as error:  # PyMySQL's, of a file; it wraps those of the network
            raise peewee.InterfaceError(f"a file that DATABASE_URL names cannot be used: {error}") from None
        except Exception as error:
            is_drivers_own = isinstance(error, TypeError | ValueError | AttributeError)
            if is_drivers_own or re.search(r'invalid .*"', str(error)):  # as libpq says: invalid port number: "word"
                raise peewee.InterfaceError(BAD_OPTION) from None
            raise
        finally:
            self.connect_params = params


def skip_hosts(params, number):
    """Return a connection's parameters without the first of several hosts, and without their ports."""
    lists = {name: params[name].split(",") for name in ("host", "port") if "," in str(params.get(name))}
    return params | {name: ",".join(values[number:]) for name, values in lists.items()}


def is_name(host):
    """Return whether a host is a name, and not an address, a socket's folder or nothing."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "" and not host.startswith(("/", "@"))
    return False


def count_silent(hosts, seconds):
    """Return how many hosts come before the first one that is no name, or is looked up or refused within this time.

    Raises peewee.OperationalError if there is none. The system's own limit is often 10 seconds for each name. A thread
    that waits for it ends with it.
    """
    deadline = time.monotonic() + seconds

    def look_up(host, is_done):
        with contextlib.suppress(OSError, UnicodeError):  # the driver says why
            socket.getaddrinfo(host, None)
        is_done.set()

    done = [threading.Event() for _ in hosts]
    for host, is_done in zip(hosts, done, strict=True):
        if is_name(host):
            threading.Thread(target=look_up, args=[host, is_done], daemon=True).start()
        else:
            is_done.set()
    for number, is_done in enumerate(done):
        if is_done.wait(max(0, deadline - time.monotonic())):
            return number
    raise peewee.OperationalError(f"no name server answers for {' and '.join(hosts)}")
