"""The HTTP server of a :class:`~boxsup_d2.serving.backend.LabelStudioBackend`.

Five routes of json, for the annotators of one Label Studio: Python's own server does, with a thread per connection, so
that ``/health``, which Label Studio waits a second for, is answered while a mask is made.
"""

import json
import logging
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from boxsup_d2.serving.backend import LabelStudioBackend
from boxsup_d2.utils.files import strict_json

logger = logging.getLogger(__name__)

# Tasks with the masks of all that was drawn before are long.
_MAX_BYTES = 256 * 2**20


def make_server(backend: LabelStudioBackend, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound, and that ``serve_forever()`` starts.

    Args:
        backend: answers.
        host: address to listen on; "" is all of them.
        port: 0: a free one, see ``server_port``.

    Raises:
        OSError: the port is taken, or there is no such address.
    """
    return ThreadingHTTPServer((host, port), type("Handler", (_Handler,), {"backend": backend}))


class _Handler(BaseHTTPRequestHandler):
    backend: LabelStudioBackend
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """Answer what asks whether, and with what, it works."""
        path = self.path.split("?")[0].rstrip("/")
        if path in ("", "/health"):
            self._answer(HTTPStatus.OK, self.backend.health())
        elif path == "/versions":
            self._answer(HTTPStatus.OK, {"versions": [self.backend.version]})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"There is no '{path}'."})

    def do_POST(self) -> None:
        """Answer ``/setup``, ``/predict`` and ``/webhook``; errors in one line, as ``error``."""
        request = self._request()
        if request is None:
            return
        path = self.path.split("?")[0].rstrip("/")
        try:
            if path == "/predict":
                self._answer(HTTPStatus.OK, self.backend.predict(request))
            elif path == "/setup":
                self._answer(HTTPStatus.OK, self.backend.setup(request))
            elif path == "/webhook":  # tells of new annotations; there is nothing to train on them here
                self._answer(HTTPStatus.CREATED, {})
            else:
                self._answer(HTTPStatus.NOT_FOUND, {"error": f"There is no '{path}'."})
        except ConnectionError:  # the client has gone
            self.close_connection = True
        except FileNotFoundError as error:
            self._answer(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except ValueError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._answer(HTTPStatus.BAD_GATEWAY, {"error": str(error)})
        except Exception as error:  # the next request may be a good one
            logger.exception("'%s' failed", path)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"{type(error).__name__}: {error}"})

    def _request(self) -> dict[str, Any] | None:
        """The json of the request; None where it has none, which is answered."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_BYTES:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if length.isdigit() else HTTPStatus.LENGTH_REQUIRED
            self.close_connection = True  # the body is not read
            self._answer(status, {"error": f"The request's length is '{length}', not up to {_MAX_BYTES} bytes."})
            return None
        try:
            request = json.loads(self.rfile.read(int(length)) or b"{}")
        except (ValueError, RecursionError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": f"The request is no json ({error})."})
            return None
        if not isinstance(request, dict):
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "The request is no json object."})
            return None
        return request

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        if status >= HTTPStatus.BAD_REQUEST:
            logger.warning("%s: %s", self.path, content["error"])
        body = strict_json(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, and not to the standard error."""
        logger.info(format, *args)
