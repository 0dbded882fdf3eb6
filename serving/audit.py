"""The audit record: a line of JSON per flagged row, written off the way of the answers.

docs/operations.md explains each field. The file shows scores and evidence, which are an oracle for an attacker.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Literal

from serving.audit_record import Record, as_line, describe_evidence, describe_inputs, n_bytes_of, records_of
from serving.config import AuditSettings
from serving.errors import StartError
from serving.events import RowsFlagged
from serving.rotation import RotatingFile

__all__ = ["Audit", "Outcome", "open_audit"]

_logger = logging.getLogger(__name__)

Outcome = Literal["complete", "without_evidence", "lost"]

_MOST_ROWS = 4096
"""Rows that may wait; what comes on top is lost."""
_MOST_BYTES = 256 * 2**20
"""Of inputs that waiting rows hold; past it, a row's digest is taken at once and its evidence left out."""
_MOST_ROWS_BEHIND = 256
"""Rows that may wait behind one whose evidence is gathered."""
_EVIDENCE_SHARE = 0.1
"""Of the time of one thread may go into evidence."""
_EVIDENCE_SAVED_S = 10.0
"""How much of that time may be saved up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Records of one request; without the rows themselves where those would take too much memory."""

    model: str
    records: list[Record]
    n_bytes: int
    flagged: RowsFlagged | None
    left_out: tuple[str, ...]


class Audit:
    """Writes down flagged rows in a thread of its own; handing them over never waits and never fails.

    Evidence takes a run of the bounded model per row, so it is gathered for as many rows as a tenth of the thread's
    time allows, and left out where many wait. A record that cannot be written is counted as lost.

    Args:
        file: Where lines go; closed with the audit.
        settings: How many bytes a line may take, and whether it holds inputs.
        count: Told the model and what became of its record.
        clock: Seconds, only ever growing.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        file: RotatingFile,
        settings: AuditSettings,
        *,
        count: Callable[[str, Outcome], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._settings = settings
        self._count = count
        self._clock = clock
        self._now = now
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._lock = Lock()
        self._n_rows = self._n_bytes = 0
        self._closing = self._failing = False
        self._evidence_s, self._looked = _EVIDENCE_SAVED_S, clock()
        self._writer = Thread(target=self._write_all, name="audit", daemon=True)
        self._writer.start()

    def __call__(self, flagged: RowsFlagged) -> None:
        """Take over the flagged rows of a request; may be called from any thread."""
        n_rows = int(flagged.verdict.flagged.sum())
        try:
            taken = self._take(flagged, n_rows)
        except Exception:
            # No answer may fail for want of a record of it.
            _logger.exception("flagged rows could not be taken over")
            taken = False
        if not taken:
            self._lose(flagged.model, n_rows, "more rows are flagged than can be written down")

    def _take(self, flagged: RowsFlagged, n_rows: int) -> bool:
        n_bytes = n_bytes_of(flagged)
        records = list(records_of(flagged, now=self._now()))
        with self._lock:
            if self._closing or (self._n_rows and self._n_rows + n_rows > _MOST_ROWS):
                return False
            keeps = self._n_bytes + n_bytes <= _MOST_BYTES
            self._n_rows += n_rows
            self._n_bytes += n_bytes if keeps else 0
        if keeps:
            waiting = _Waiting(model=flagged.model, records=records, n_bytes=n_bytes, flagged=flagged, left_out=())
        else:
            for record in records:
                describe_inputs(record, flagged, whole=False)
            left_out = self._left_out(flagged)
            waiting = _Waiting(model=flagged.model, records=records, n_bytes=0, flagged=None, left_out=left_out)
        self._queue.put(waiting)
        return True

    def close(self, timeout_s: float) -> None:
        """Write what waits, without evidence, and close the file; what takes longer than the timeout is lost."""
        with self._lock:
            self._closing = True
        self._queue.put(None)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            _logger.error("the audit's disk does not answer: %d records are lost", self._n_rows)
            return
        self._file.close()

    def _write_all(self) -> None:
        while (waiting := self._queue.get()) is not None:
            for record in waiting.records:
                self._write(record, waiting)
                with self._lock:
                    self._n_rows -= 1
            with self._lock:
                self._n_bytes -= waiting.n_bytes

    def _write(self, record: Record, waiting: _Waiting) -> None:
        try:
            left_out = [*waiting.left_out, *self._complete(record, waiting.flagged)]
            if left_out:
                record["left_out"] = left_out
            self._file.write(as_line(record, max_bytes=self._settings.max_bytes))
        except OSError as error:
            self._lose(waiting.model, 1, f"{self._settings.path} cannot be written: {error.strerror}")
        except Exception:
            # Whatever it is, the next record must still be written.
            _logger.exception("an audit record could not be made")
            self._lose(waiting.model, 1, "a record could not be made")
        else:
            self._recover()
            self._count(waiting.model, "without_evidence" if "evidence" in left_out else "complete")

    def _left_out(self, flagged: RowsFlagged) -> tuple[str, ...]:
        """Return what a record lacks where the rows are not kept."""
        evidence = () if flagged.verdict.evidence_of is None else ("evidence",)
        return (*evidence, "inputs") if self._settings.inputs else evidence

    def _complete(self, record: Record, flagged: RowsFlagged | None) -> tuple[str, ...]:
        """Add what was left for this thread to do; return what it had no time for."""
        if flagged is None:
            return ()
        describe_inputs(record, flagged, whole=self._settings.inputs)
        if flagged.verdict.evidence_of is None:
            return ()
        record["evidence"] = self._evidence(flagged, record["row"])
        return ("evidence",) if record["evidence"] is None else ()

    def _evidence(self, flagged: RowsFlagged, row: int) -> Record | None:
        if not self._has_time():
            return None
        started = self._clock()
        try:
            return describe_evidence(flagged.verdict.explain(row))
        except Exception as error:  # noqa: BLE001 - whatever it is, the record is written without
            _logger.warning("no evidence for an audit record: %s", type(error).__name__)
            return None
        finally:
            self._evidence_s -= self._clock() - started

    def _has_time(self) -> bool:
        now = self._clock()
        self._evidence_s = min(_EVIDENCE_SAVED_S, self._evidence_s + (now - self._looked) * _EVIDENCE_SHARE)
        self._looked = now
        return self._evidence_s > 0 and self._n_rows <= _MOST_ROWS_BEHIND and not self._closing

    def _lose(self, model: str, n_rows: int, why: str) -> None:
        for _ in range(n_rows):
            self._count(model, "lost")
        with self._lock:
            first, self._failing = not self._failing, True
        if first:
            _logger.error("audit records are lost until further notice: %s", why)

    def _recover(self) -> None:
        with self._lock:
            again, self._failing = self._failing, False
        if again:
            _logger.warning("audit records are written again")


def open_audit(settings: AuditSettings, *, count: Callable[[str, Outcome], None]) -> Audit:
    """Open the file and start writing.

    Args:
        settings: Where to, and how much.
        count: Told the model and what became of its record.

    Raises:
        StartError: The file cannot be written.
    """
    try:
        file = RotatingFile(settings.path, max_bytes=settings.max_bytes, n_files=settings.n_files)
    except OSError as error:
        raise StartError(
            f"cannot write --audit {settings.path}: {error.strerror}; name a file in a folder of this user's"
        ) from error
    return Audit(file, settings, count=count)
