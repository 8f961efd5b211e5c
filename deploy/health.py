"""The container's health check: ask the API for /health at the address on which it listens."""

import http.client
import sys

from settings import HOST, PORT

ANY_ADDRESS = {"*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def main():
    """Exit with 0 if the API is healthy; otherwise with 1, and one line that says why."""
    try:
        api = http.client.HTTPConnection(ANY_ADDRESS.get(HOST, HOST), PORT, timeout=4)  # seconds
        api.request("GET", "/health")
        response = api.getresponse()
        text = response.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"no response from {HOST} port {PORT}: {error!r}")
    print(text)
    sys.exit(response.status != 200)


main()
