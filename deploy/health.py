"""The container's health check: ask the API for /health at the address on which it listens.

HOST and PORT are read as the API reads them, so a file named by HOST_FILE or PORT_FILE wins.
"""

import http.client
import os
import pathlib
import sys

ANY_ADDRESS = {"": "127.0.0.1", "*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def read_setting(name):
    """Return a setting, from the file that NAME_FILE names or from the environment."""
    path = os.environ.get(f"{name}_FILE", "").strip()
    return (pathlib.Path(path).read_text("utf-8-sig") if path else os.environ.get(name, "")).strip()


def main():
    """Exit with 0 if the API is healthy; otherwise with 1, and one line that says why."""
    host, port = read_setting("HOST"), read_setting("PORT") or "5000"
    try:
        api = http.client.HTTPConnection(ANY_ADDRESS.get(host, host), int(port), timeout=4)
        api.request("GET", "/health")
        response = api.getresponse()
        text = response.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"no response from {host or '127.0.0.1'} port {port}: {error!r}")
    print(text)
    sys.exit(response.status != 200)


main()
