"""Stands where a user's Jupyter would: listens, answers below its base URL to whoever has the token.

Takes Jupyter's own arguments. For tests of the Hub's side that need no container; real Jupyter in real containers is
started in the tests marked `engine`.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


def main(arguments: list[str]) -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in arguments if a.startswith("--ServerApp."))
    base, token = options["ServerApp.base_url"], options["ServerApp.token"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(address.query).items()}
            inside = address.path.startswith(base) and query.get("token") == token
            body = json.dumps({"arguments": arguments, "environment": dict(os.environ)} if inside else {}).encode()
            # JupyterHub takes any answer below 500 for a server that is up.
            self.send_response(200 if inside else 403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return None

    ThreadingHTTPServer(("127.0.0.1", int(options["ServerApp.port"])), Handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
