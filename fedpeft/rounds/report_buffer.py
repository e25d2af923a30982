"""Reports that have come before their turn: in memory up to a bound, the rest in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import IO

from fedpeft.communication.messages import Report
from fedpeft.machine import cache
from fedpeft.machine.growing_array import create_nameless_file

HELD = 256 << 20
"""Bytes of reports that wait in memory."""


@dataclass
class ReportBuffer:
    """Reports by client, until their turn comes; memory does not depend on how many wait."""

    held: int = 0
    _reports: dict[int, Report] = field(default_factory=dict)
    _places: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # in the file: position, bytes of both parts
    _file: IO[bytes] | None = None
    _end: int = 0

    def put(self, report: Report) -> None:
        """Keep a report.

        Raises:
            AssetError: it does not fit memory, and the disk of the cache is full.
        """
        if self.held + report.bytes <= HELD:
            self.held += report.bytes
        else:
            self._file = self._file or create_nameless_file()
            with cache.check_disk_space("updates that do not fit memory"):
                self._file.write(report.payload)
                self._file.write(report.correction)
                self._file.flush()
            self._places[report.client] = self._end, len(report.payload), len(report.correction)
            self._end += report.bytes
            report = replace(report, payload=b"", correction=b"")
        self._reports[report.client] = report

    def take(self, client: int) -> Report | None:
        """Return a client's report, and forget it; None: it has not come."""
        report = self._reports.pop(client, None)
        if report is None or client not in self._places:
            self.held -= report.bytes if report is not None else 0
            return report
        position, payload, correction = self._places.pop(client)
        assert self._file is not None
        both = os.pread(self._file.fileno(), payload + correction, position)
        return replace(report, payload=both[:payload], correction=both[payload:])
