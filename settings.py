"""Every setting, once: its name, its default, what it means and which values it takes.

Settings are environment variables, read when this module is imported. A bad value stops the program with one line.
NAME_FILE can name a file that holds the value, such as a Docker secret.
"""

import ipaddress
import os
import pathlib
import re
import sys
import unicodedata

import limits

MEANINGS = {}  # of each setting: its default and its sentence, for --help and the README


def setting(name, default, meaning, parse=str):
    """Return the value of a setting, as `parse` returns it. `parse` raises ValueError with the rule in words."""
    MEANINGS[name] = (default, meaning)
    try:
        return parse(read(name) or default)
    except ValueError as rule:
        sys.exit(f"{name} must be {rule}; see python course_api.py --help")


def read(name):
    """Return the text of a setting without white space at its ends, from the file of NAME_FILE if that is set."""
    path = os.environ.get(f"{name}_FILE", "").strip()
    if not path:
        return os.environ.get(name, "").strip()
    try:
        text = pathlib.Path(path).read_text("utf-8-sig").strip()
    except OSError as error:
        sys.exit(f"{name}_FILE names {path}, which cannot be read: {error.strerror}")
    except ValueError:
        sys.exit(f"{name}_FILE names {path}, which is not UTF-8 text")
    return text or sys.exit(f"{name}_FILE names {path}, which is empty")


def describe():
    """Return a line for each setting: its name, its meaning and its default."""
    return "\n".join(f"    {name:<14} {text} ({default or 'none'})" for name, (default, text) in MEANINGS.items())


# -- The kinds of values -----------------------------------------------------------------------------------------------


def whole_number(minimum, maximum):
    """Return a parser for whole numbers in this range."""

    def parse(text):
        if not re.fullmatch("[0-9]{1,10}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def pattern(regex, rule):
    """Return a parser for texts that match a regular expression, which a rule puts in words."""

    def parse(text):
        if not re.fullmatch(regex, text):
            raise ValueError(rule)
        return text

    return parse


def yes_or_no(text):
    return pattern("true|false|1|0", "true or false")(text.lower()) in ("true", "1")


def secret_key(text):
    key = os.fsencode(text)
    if 0 < len(key) < 32:  # HS256's own length (RFC 7518 §3.2)
        raise ValueError("32 bytes or more; make one with: openssl rand -hex 32")
    return key


def rate(text):
    return limits.parse(
        pattern(r"[1-9]\d* *(/|per) *\d* *(second|minute|hour|day|month|year)s?", "like 5/5minutes")(text)
    )


def storage(text):
    """Return where failed logins are counted; nothing is connected yet. All times are in seconds."""
    rule = "memory://, or like redis://host:6379 with requirements-servers.txt installed; percent-encode the password"
    place = r"(redis|rediss)://[^/?#]+([/?][^@#]*)?|redis\+unix://([^/?#]*@)?/[^@#]+"  # no part of a password after it
    pattern(rf"memory://|{place}", rule)(text)
    try:
        timeouts = {"socket_timeout": 1, "socket_connect_timeout": 1}
        return limits.storage.storage_from_string(text, wrap_exceptions=True, **timeouts)
    except (limits.errors.ConfigurationError, ValueError):
        raise ValueError(rule) from None


def proxies(text):
    """Return the networks that a list of addresses and networks names; those that map IPv4 into IPv6 are IPv4's own."""
    if text == "*":
        text = "0.0.0.0/0, ::/0"
    try:
        networks = [ipaddress.ip_network(item, strict=False) for item in re.findall(r"[^,\s]+", text)]
    except ValueError:
        raise ValueError("IP addresses and networks such as 127.0.0.1, 10.0.0.0/8, or * for any") from None
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    return [
        ipaddress.ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        if network.version == 6 and network.subnet_of(mapped)
        else network
        for network in networks
    ]


def origins(text):
    """Return a pattern for the origins that a list names, or None for an empty list."""
    return re.compile("|".join(map(origin, re.findall(r"[^,\s]+", text)))) if text else None


def origin(text):
    """Return a pattern for one origin, with * for any origin or any subdomain."""
    if text == "*":
        return ".+"
    host = r"((?:\*\.)?[^\s/?#@:*\[\]]+|\[[0-9a-f:.]+\])"
    found = re.fullmatch(rf"([a-z][a-z0-9+.-]*)://{host}(?::([0-9]+))?([/?#].*)?", text.lower())
    if not found:
        raise ValueError("origins like https://a.example or https://*.a.example, or *")
    scheme, host, port, _ = found.groups()
    has_port = port and int(port) != {"http": 80, "https": 443}.get(scheme)
    sent = f"{scheme}://{'.'.join(map(punycode, host.split('.')))}" + (f":{int(port)}" if has_port else "")
    if text != sent:
        raise ValueError(f"origins as browsers send them: write {sent} in place of {text}")
    return re.escape(sent).replace(r"\*", "[a-z0-9_.-]+")


def punycode(label):
    """Return a label of a host's name as browsers send it (RFC 3492)."""
    label = unicodedata.normalize("NFKC", label)
    return label if label.isascii() else f"xn--{label.encode('punycode').decode()}"


# -- The settings ------------------------------------------------------------------------------------------------------

URL_RULE = "like sqlite:///courses.db, postgresql://user:password@host/name or mysql://user:password@host/name"
URL = pattern(r"sqlite:///.*|sqlite://|(postgres|postgresql|mysql|mariadb)://.*/.+", URL_RULE)
PREFIX = pattern(r"(/[\w.~-]+)*", "a path like /catalogue, with no / at the end")
LEVEL = pattern("DEBUG|INFO|WARNING|ERROR", "DEBUG, INFO, WARNING or ERROR")

HOST = setting("HOST", "127.0.0.1", "address to listen on; 0.0.0.0 for all of IPv4, :: of IPv6, * of both")
PORT = setting("PORT", "5000", "port to listen on; 0 takes a free one", whole_number(0, 65535))
URL_PREFIX = setting(
    "URL_PREFIX", "", "path below which the API lives, such as /catalogue, whether or not the proxy strips it", PREFIX
)
DATABASE_URL = setting(
    "DATABASE_URL",
    "sqlite:///courses.db",
    "the database; sqlite:///:memory: has the dummy data and keeps nothing on disk",
    URL,
)
SECRET_KEY = setting(
    "SECRET_KEY",
    "",
    "key that signs the tokens, 32 bytes or more; unset, a random one is made once and kept in the database",
    secret_key,
)
TOKEN_SECONDS = setting("TOKEN_SECONDS", "200", "token lifetime in seconds", whole_number(1, 10**9))
PUBLIC_READ = setting("PUBLIC_READ", "false", "true: courses can be read without a token", yes_or_no)
LOGIN_LIMIT = setting(
    "LOGIN_LIMIT", "5/5minutes", "failed logins allowed per user name and address; ten times as many per address", rate
)
LIMIT_STORAGE = setting(
    "LIMIT_STORAGE", "memory://", "where failed logins are counted; redis://host:6379 for several processes", storage
)
TRUSTED_PROXY = setting(
    "TRUSTED_PROXY",
    "",
    "addresses and networks of the proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8; * for any",
    proxies,
)
CORS_ORIGINS = setting(
    "CORS_ORIGINS",
    "",
    "web pages that may use the API, such as https://a.example, https://*.b.example; * for all",
    origins,
)
THREADS = setting("THREADS", "4", "requests handled at once, plus up to 16 logins", whole_number(1, 1000))
LOG_LEVEL = setting(
    "LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR; INFO logs each request to standard output", LEVEL
)
