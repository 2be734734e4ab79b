"""One cycle of a partition, decided: which results, dead letters and ledger entries its records and deadlines bring.

Nothing is sent, committed or remembered here. A draft takes records and due messages and adds up what follows from
them; whoever holds it makes that one transaction, or drops it and has changed nothing.
"""

from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from consumers.engine.record import InputRecord
from consumers.entry import DIGEST_BYTES, Entry, LedgerDamagedError, LedgerFormatError
from consumers.message import Change, MessageState, StateFormatError, deadline, decode, encode, is_forgotten
from consumers.recipients import Recipients
from consumers.results import expire, step
from ingest.contract.dead_letter import DeadLetter, Origin, Stage
from ingest.contract.envelope import Headers, result_headers
from ingest.contract.report import Reason, RejectedError, Report, decode_report
from ingest.contract.result import Result, encode_result
from ingest.runtime.partitioner import partitions_of

Lookup = Callable[[Sequence[bytes]], list[bytes | None]]
"""Payloads of committed entries, in the order asked for (`consumers.engine.protocols.Ledger.lookup`)."""

UNUSABLE = "unusable"
"""The label `result` of `dlrflow_records_total` for what became a dead letter; the others are those of `Change`."""


class Outgoing(NamedTuple):
    """A record to be sent."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is the same for every cycle of a partition.

    Attributes:
        reports_topic: name of the input topic, the `ce_source` of results.
        partition: number of the input partition.
        partitions: how many the input topic has.
        timeout_ms: reassembly timeout.
        late_window_ms: how long a message is remembered after its last result.
        recipients: hides telephone numbers; None leaves them as they are.
    """

    reports_topic: str
    partition: int
    partitions: int
    timeout_ms: int
    late_window_ms: int
    recipients: Recipients | None = None


class InternalError(Exception):
    """Our own code failed on one record: carried as the cause, so that the record can be named."""


def digest_of(message_id: bytes) -> bytes:
    """Under what the ledger keeps a message: BLAKE2b-128 of its UTF-8 `smsMsgId`."""
    return blake2b(message_id, digest_size=DIGEST_BYTES).digest()


class Draft:
    """What a cycle will write.

    Attributes:
        clock_ms: partition clock of the cycle: of its messages' deadlines and late windows.
        results: in the order of the records that brought them, then those of timeouts.
        dead_letters: in the order of their records.
        changed: new state of every message that the cycle touched.
        records: how many records were taken, by label of `dlrflow_records_total`.
        outcomes: how many results, by (outcome, reason).
        reasons: how many dead letters, by reason.
        bytes: of the values of results and dead letters.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        clock_ms: int,
        now_ms: int,
        lookup: Lookup,
        overlay: Mapping[bytes, MessageState] | None = None,
    ) -> None:
        """Begin an empty cycle.

        Args:
            rules: of the partition.
            clock_ms: partition clock, taken once for the cycle.
            now_ms: wall time, of what is produced.
            lookup: reads committed states.
            overlay: states that a cycle still in flight has written over the committed ones.
        """
        self.clock_ms = clock_ms
        self.results: list[Outgoing] = []
        self.dead_letters: list[DeadLetter] = []
        self.changed: dict[bytes, MessageState] = {}
        self.records: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[str] = Counter()
        self.bytes = 0
        self._rules = rules
        self._now_ms = now_ms
        self._lookup = lookup
        self._overlay = {} if overlay is None else overlay
        self._fresh: set[bytes] = set()

    @property
    def writes(self) -> bool:
        """Whether there is anything but a position to write."""
        return bool(self.changed or self.dead_letters)

    def take(self, records: Sequence[InputRecord]) -> None:
        """Apply records, in their order.

        Raises:
            InternalError: our code failed on a record. The draft is of no use any more: begin another one and take
                the records with `take_apart`.
            LedgerDamagedError: what was remembered cannot be read.
            LedgerFormatError: it was written by a newer release.
            Exception: what the lookup raises.
        """
        usable, reports = self._read(records)
        keys = [record.key or b"" for record in usable]
        digests = [blake2b(key, digest_size=DIGEST_BYTES).digest() for key in keys]
        before = self._load(digests)
        try:
            self._apply(usable, reports, digests, before)
        except Exception as error:
            raise InternalError from error

    def take_apart(self, records: Sequence[InputRecord], on_failure: Callable[[InputRecord, Exception], None]) -> None:
        """Apply records one by one; each that our code fails on becomes a dead letter `internal`.

        Args:
            records: in their order.
            on_failure: told of each such record and what was raised.
        """
        for record in records:
            trial = Draft(
                self._rules,
                clock_ms=self.clock_ms,
                now_ms=self._now_ms,
                lookup=self._lookup,
                overlay=ChainMap(self.changed, dict(self._overlay)),
            )
            try:
                trial.take([record])
                trial.entries()
            except InternalError as error:
                on_failure(record, error.__cause__ if isinstance(error.__cause__, Exception) else error)
                self._put_aside(record)
            else:
                self._merge(trial)

    def refuse(self, record: InputRecord, rejected: RejectedError) -> None:
        """Make one record a dead letter.

        Raises:
            InternalError: our code failed on its headers.
        """
        try:
            self._refuse(record, rejected, list(record.headers))
        except Exception as error:
            raise InternalError from error

    def expire(self, due: Sequence[tuple[bytes, bytes]]) -> None:
        """Emit the timeouts of messages whose deadline has passed, unless a cycle in flight or this one answered them.

        Args:
            due: (digest, committed payload) of messages that wait (`Ledger.due`).

        Raises:
            InternalError: our code failed on one of them.
            LedgerDamagedError, LedgerFormatError: as `take`.
        """
        for digest, payload in due:
            state = self.changed.get(digest) or self._overlay.get(digest) or self._remembered(payload)
            due_at = deadline(state, self._rules.timeout_ms)
            if due_at is None or due_at > self.clock_ms:
                continue
            try:
                after, result = expire(state, self.clock_ms)
                self._emit(result.sms_msg_id.encode(), result)
            except Exception as error:
                raise InternalError from error
            self.changed[digest] = after

    def entries(self) -> list[Entry]:
        """The changed states as the ledger takes them.

        Raises:
            InternalError: a state cannot be encoded.
        """
        fresh = self._fresh
        try:
            return [
                Entry(digest, state.seen_at, digest in fresh, state.waiting, encode(state))
                for digest, state in self.changed.items()
            ]
        except Exception as error:
            raise InternalError from error

    def _refuse(self, record: InputRecord, rejected: RejectedError, headers: Headers) -> None:
        rules = self._rules
        letter = DeadLetter.of_record(
            Stage.ASSEMBLE,
            rejected,
            origin=Origin(rules.reports_topic, rules.partition, record.offset),
            key=record.key,
            value=record.value,
            headers=headers,
            now_ms=self._now_ms,
        )
        self.records[UNUSABLE] += 1
        self.reasons[rejected.reason] += 1
        self.bytes += len(record.value or b"")
        self.dead_letters.append(letter)

    def _put_aside(self, record: InputRecord) -> None:
        """Make a record that our code failed on a dead letter, without its headers if it is these that we fail on."""
        rejected = RejectedError(Reason.INTERNAL, "The record made the assembler fail.")
        try:
            self.refuse(record, rejected)
        except InternalError:
            self._refuse(record, rejected, [])

    def _read(self, records: Sequence[InputRecord]) -> tuple[list[InputRecord], list[Report]]:
        """Divide records into usable ones, with what they say, and dead letters."""
        usable: list[InputRecord] = []
        reports: list[Report] = []
        recipients = self._rules.recipients
        for record in records:
            try:
                report = _report_of(record)
                if recipients is not None:
                    report = recipients.in_report(report)
            except RejectedError as rejected:
                self.refuse(record, rejected)
            except Exception as error:
                raise InternalError from error
            else:
                usable.append(record)
                reports.append(report)
        rules = self._rules
        if not usable or rules.partitions == 1:
            return usable, reports
        astray = partitions_of([record.key or b"" for record in usable], rules.partitions) != rules.partition
        if not astray.any():
            return usable, reports
        kept: list[int] = []
        for index, wrong in enumerate(astray.tolist()):
            if wrong:
                self.refuse(usable[index], _astray(reports[index]))
            else:
                kept.append(index)
        return [usable[index] for index in kept], [reports[index] for index in kept]

    def _load(self, digests: Sequence[bytes]) -> dict[bytes, MessageState]:
        """The states that the messages have before this call, without those past their late window."""
        changed, overlay = self.changed, self._overlay
        unread = [digest for digest in dict.fromkeys(digests) if digest not in changed and digest not in overlay]
        states = {
            digest: self._remembered(payload)
            for digest, payload in zip(unread, self._lookup(unread) if unread else (), strict=True)
            if payload is not None
        }
        for digest in digests:
            state = overlay.get(digest)
            if state is not None and digest not in changed:
                states[digest] = state
        window_ms, clock_ms = self._rules.late_window_ms, self.clock_ms
        return {digest: state for digest, state in states.items() if not is_forgotten(state, window_ms, clock_ms)}

    def _remembered(self, payload: bytes) -> MessageState:
        state = _remembered(payload)
        return state if self._rules.recipients is None else self._rules.recipients.in_state(state)

    def _apply(
        self,
        records: Sequence[InputRecord],
        reports: Sequence[Report],
        digests: Sequence[bytes],
        before: dict[bytes, MessageState],
    ) -> None:
        changed, fresh, clock_ms = self.changed, self._fresh, self.clock_ms
        applied = 0
        for record, report, digest in zip(records, reports, digests, strict=True):
            state = changed.get(digest) or before.get(digest)
            after, change, result = step(state, report, record.timestamp, clock_ms)
            if change is not Change.APPLIED:
                self.records[change] += 1
                continue
            applied += 1
            changed[digest] = after
            if state is None:
                fresh.add(digest)
            if result is not None:
                self._emit(record.key or b"", result)
        self.records[Change.APPLIED] += applied

    def _emit(self, key: bytes, result: Result) -> None:
        headers = result_headers(result.sms_msg_id, result.revision, self._rules.reports_topic, self._now_ms)
        value = encode_result(result)
        self.bytes += len(value)
        self.results.append(Outgoing(key, value, headers, self._now_ms))
        self.outcomes[result.outcome, result.reason] += 1

    def _merge(self, other: "Draft") -> None:
        self.results += other.results
        self.dead_letters += other.dead_letters
        self.changed |= other.changed
        self.records += other.records
        self.outcomes += other.outcomes
        self.reasons += other.reasons
        self.bytes += other.bytes
        self._fresh |= other._fresh  # noqa: SLF001 - the same class


def _report_of(record: InputRecord) -> Report:
    value = record.value
    if value is None:
        raise RejectedError(Reason.NOT_JSON, "The record has no value.")
    report = decode_report(value)
    if record.key != report.message_id.encode():
        raise RejectedError(Reason.KEY_MISMATCH, "The key is not the smsMsgId.", report.message_id)
    return report


def _astray(report: Report) -> RejectedError:
    detail = "The record stands in a partition that its key does not belong to."
    return RejectedError(Reason.WRONG_PARTITION, detail, report.message_id)


def _remembered(payload: bytes) -> MessageState:
    try:
        return decode(payload)
    except StateFormatError as error:
        raise LedgerFormatError(str(error)) from error
    except ValueError as error:
        raise LedgerDamagedError("a remembered message cannot be read") from error
