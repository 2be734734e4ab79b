"""Telephone numbers in results, for those who may not keep them: a keyed hash in place of each.

It is put in place where a record is read, before the join. So results, sinks, changelog and ledger never hold a number
that came in while a key was set, and what is remembered from before is hashed where it is read. The join then orders
hashes where it would have ordered numbers: it stays a join, with the same outcome for the same key.

A number has few digits: without the key all of them could be tried. Whoever has the key can find a number's hash, and
so look a customer up or delete one (docs/privacy.md).
"""

import hmac
from typing import Final

import msgspec

from consumers.message import Counted, MessageState
from ingest.contract.report import Report

PREFIX: Final = "hmac-sha256:"
_HASHED_CHARS: Final = len(PREFIX) + 64
"""More than `ingest.contract.report.FIELD_MAX`: no report can state what looks like a hash."""


class Recipients:
    """Hides recipients.

    Args:
        key: of the hash; another key gives other hashes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hidden(self, to: str) -> str:
        """The hash of a number, as `hmac-sha256:` and 64 lower-case hex digits; what is hashed or absent stays."""
        if not to or (len(to) == _HASHED_CHARS and to.startswith(PREFIX)):
            return to
        return PREFIX + hmac.digest(self._key, to.encode(), "sha256").hex()

    def in_report(self, report: Report) -> Report:
        """The report with its recipient hidden."""
        return msgspec.structs.replace(report, to=self.hidden(report.to)) if report.to else report

    def in_state(self, state: MessageState) -> MessageState:
        """The state with all its recipients hidden: one from before the key was set may hold numbers."""
        segments = tuple(self._in_counted(counted) for counted in state.segments)
        return state if segments == state.segments else msgspec.structs.replace(state, segments=segments)

    def _in_counted(self, counted: Counted) -> Counted:
        to = self.hidden(counted.to)
        return counted if to is counted.to else msgspec.structs.replace(counted, to=to)
