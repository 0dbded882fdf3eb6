"""Raw HTTP to a server of this process: what is sent is exactly what a test says."""

import http.client
import json
from typing import Any

import numpy as np
from bundles import CLEAN, TRIGGERED
from servers import TIMEOUT_S, Live

__all__ = ["LENGTH", "RAW", "ROWS", "Answer", "infer_body", "mixed_binary", "output", "post_infer", "rest"]

MIXED = np.concatenate([CLEAN, TRIGGERED])
ROWS = MIXED.tolist()
"""A clean row and a triggered one."""

RAW = MIXED.astype("<f4").tobytes()
"""The same in binary."""

LENGTH = "Inference-Header-Content-Length"


class Answer:
    """A status, and the body as it came."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.body, self.headers = response.status, response.read(), response.headers

    @property
    def json(self) -> Any:
        """The JSON of the body, without what is behind it."""
        return json.loads(self.body[: int(self.headers.get(LENGTH, len(self.body)))])

    @property
    def behind(self) -> bytes:
        """What is behind the JSON."""
        return self.body[int(self.headers[LENGTH]) :]


def rest(server: Live, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """Send one request on a connection of its own; a body that is no bytes goes as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.running.rest_port, timeout=TIMEOUT_S)
    try:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def post_infer(server: Live, body: Any, *, model: str = "tiny", headers: dict[str, str] | None = None) -> Answer:
    """Ask a model, in JSON."""
    return rest(server, "POST", f"/v2/models/{model}/infer", body, headers)


def infer_body(rows: Any, **tensor: Any) -> dict[str, Any]:
    """Return a request about rows of the tiny model, with other entries of its tensor."""
    shape = [len(rows), len(rows[0]) if len(rows) else 3]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": rows} | tensor]}


def binary_body(header: Any, *raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body with raw bytes behind its JSON, and the header that says so."""
    content = json.dumps(header).encode()
    return b"".join((content, *raw)), {LENGTH: str(len(content))}


def mixed_binary(
    tensor: dict[str, Any] | None = None, raw: bytes = RAW, **request: Any
) -> tuple[bytes, dict[str, str]]:
    """Return a binary request about the mixed rows, with other entries of its tensor."""
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    return binary_body({"inputs": [entry | (tensor or {})]}, raw)


def output(answer: Answer, name: str) -> Any:
    """Return what the JSON of an answer says of one output."""
    return next(each for each in answer.json["outputs"] if each["name"] == name)
