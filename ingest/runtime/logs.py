"""Logs on standard error: lines for people on a terminal, JSON objects for machines.

Everything goes through the standard library's logging, so the lines of libraries look like ours. The Kafka client
repeats itself up to a hundred times a second while a broker is away; `Rarely` lets each of its messages through once
in a while and says how many it held back.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Final, Literal

import structlog

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]

NOISY: Final = "aiokafka"
INTERVAL_S: Final = 10.0
_MESSAGES_MAX = 512


class Rarely(logging.Filter):
    """Passes each message text of one family of loggers once per interval.

    The text is the template before its arguments are filled in, so "node 1 away" and "node 2 away" are one message.
    A record that passes after others were held back says how many in `suppressed`.

    Args:
        family: name of the logger whose records, and its descendants', are counted; others pass.
        interval_s: seconds between two records of one text.
        now: seconds that never fall.
    """

    def __init__(self, family: str, interval_s: float, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._family = family
        self._interval_s = interval_s
        self._now = now
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.name != self._family and not record.name.startswith(self._family + "."):
            return True
        key = (record.name, str(record.msg))
        now = self._now()
        passed_at, held_back = self._seen.get(key, (now - self._interval_s, 0))
        if now - passed_at < self._interval_s:
            self._seen[key] = (passed_at, held_back + 1)
            return False
        self._seen.pop(key, None)
        if len(self._seen) >= _MESSAGES_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (now, 0)
        if held_back:
            record.suppressed = held_back
        return True


def effective_format(wanted: Format | None) -> Format:
    """The format to use: `console` on a terminal, else `json`, unless one is wanted."""
    return wanted or ("console" if sys.stderr.isatty() else "json")


def configure(log_format: Format | None = None, level: Level = "info") -> None:
    """Send all logs to standard error. Calling it again replaces what was before.

    The Kafka client's own loggers never go below `info`, since what they say at `debug` holds whole requests, the
    login's included, and say only warnings unless `level` is `debug`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=["suppressed"]),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_rendering(effective_format(log_format)),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(Rarely(NOISY, INTERVAL_S))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger(NOISY).setLevel("INFO" if level == "debug" else max(logging.WARNING, root.level))
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _rendering(log_format: Format) -> list[structlog.typing.Processor]:
    """The last steps; tracebacks are plain, because pretty ones print local variables and so secrets."""
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    ]
