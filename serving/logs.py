"""Logs for people and for machines: which requests were refused, failed or flagged, and never what was in them."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from queue import Full, Queue
from threading import Thread
from typing import Any, TextIO

from serving.events import RequestEnded

__all__ = ["LogFormat", "LogLevel", "RequestLog", "logging_to"]

_requests = logging.getLogger("serving.requests")

_REFUSED = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED",
                      "UNAUTHENTICATED", "CANCELLED"})  # fmt: skip
"""Statuses that are the client's doing."""

_MOST_LINES = 1000
"""Lines that may wait to be written."""
_LAST_LINES_S = 1.0
"""Seconds that they have at the end."""

_LINES_PER_S = 20.0
_BURST = 200.0


class LogFormat(StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class RequestLog:
    """Writes a line per request that was refused, failed or flagged, and at level debug per any other.

    At most 20 lines a second after a first 200: a flood of refused requests fills no disk. The line after a gap says
    how many were left out.

    Args:
        clock: Seconds, only ever growing.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines = _BURST
        self._looked = clock()
        self._n_left_out = 0

    def __call__(self, ended: RequestEnded) -> None:
        """Write the line of one request; used from one thread."""
        level, what = _importance(ended)
        if not _requests.isEnabledFor(level):
            return
        if not self._has_room():
            self._n_left_out += 1
            return
        fields = _fields(ended)
        if self._n_left_out:
            fields["left_out"] = self._n_left_out
            self._n_left_out = 0
        _requests.log(level, what, extra={"fields": fields})

    def _has_room(self) -> bool:
        now = self._clock()
        self._lines = min(_BURST, self._lines + (now - self._looked) * _LINES_PER_S)
        self._looked = now
        if self._lines < 1:
            return False
        self._lines -= 1
        return True


@contextmanager
def logging_to(stream: TextIO, *, program: str, form: LogFormat, level: LogLevel) -> Iterator[None]:
    """Write this program's log lines to a stream until the block ends.

    Args:
        stream: Such as standard error.
        program: What lines of text begin with.
        form: How a line looks.
        level: Of this program's own lines; those of libraries are written from warnings up.
    """
    root = logging.getLogger()
    own = [logging.getLogger(name) for name in ("guard", "serving")]
    handler = _Aside(stream)
    handler.setFormatter(_Json() if form is LogFormat.JSON else _Text(program))
    handler.addFilter(_is_news)
    root.addHandler(handler)
    for logger in own:
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        for logger in own:
            logger.setLevel(logging.NOTSET)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out, with its stack trace, that an answer found its call over: gRPC's word for a deadline just past."""
    return not record.exc_info or type(record.exc_info[1]).__name__ != "ExecuteBatchError"


class _Aside(logging.Handler):
    """Writes lines in a thread of its own: who reads them may be slow, or not read at all, and hold nobody up.

    Lines that find the queue full are dropped, and counted with the next that does not.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: Queue[str | None] = Queue(_MOST_LINES)
        self._n_dropped = 0
        self._writer = Thread(target=self._write_all, name="logs", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._n_dropped and self._put(_told_of_dropped(self._n_dropped)):
            self._n_dropped = 0
        if not self._put(record):
            self._n_dropped += 1

    def _put(self, record: logging.LogRecord) -> bool:
        try:
            self._lines.put_nowait(self.format(record))
        except Full:
            return False
        return True

    def close(self) -> None:
        with suppress(Full):
            self._lines.put(None, timeout=_LAST_LINES_S)
            self._writer.join(_LAST_LINES_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):
                self._stream.write(f"{line}\n")
                self._stream.flush()


class _Text(logging.Formatter):
    def __init__(self, program: str) -> None:
        super().__init__(f"{program}: %(levelname)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        fields = _extra(record)
        return " ".join([super().formatMessage(record), *(f"{key}={value}" for key, value in fields.items())])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _told_of_dropped(n: int) -> logging.LogRecord:
    told = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({**told, "msg": "%d log lines were dropped: they are not read", "args": (n,)})


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _importance(ended: RequestEnded) -> tuple[int, str]:
    if ended.status == "OK":
        return (logging.INFO, "request flagged") if ended.n_flagged else (logging.DEBUG, "request answered")
    if ended.status in _REFUSED:
        return logging.INFO, "request refused"
    return logging.WARNING, "request failed"


def _fields(ended: RequestEnded) -> dict[str, Any]:
    fields = {
        "request_id": ended.request_id,
        "model": ended.model,
        "version": ended.version,
        "status": ended.status,
        "error": ended.error,
        "rows": ended.n_rows,
        "flagged": ended.n_flagged,
        "milliseconds": round(ended.seconds * 1000, 3),
    }
    return {key: value for key, value in fields.items() if value is not None}
