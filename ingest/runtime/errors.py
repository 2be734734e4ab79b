"""Errors that say who must act, and the exit status that a command ends with for each (contract.md section 1).

A command prints the text of a `CommandError` as one line and ends; anything else that escapes is a fault of ours.
"""

from typing import ClassVar


class CommandError(Exception):
    """Ends a command with one clear line. The text is one sentence without secrets.

    Attributes:
        status: exit status of the process.
    """

    status: ClassVar[int] = 1


class FoundError(CommandError):
    """The command did its work and found something wrong; whoever reads the findings must act."""

    status = 1


class UsageError(CommandError):
    """A wrong option, setting or surrounding (an occupied port, too); whoever started the command must act."""

    status = 2


class ServiceAwayError(CommandError):
    """A service that is needed stayed away; whoever runs it must act."""

    status = 3


class BusyError(Exception):
    """Not now: nothing was kept, and the same request may succeed later.

    Attributes:
        retry_after_s: when to try again.
    """

    def __init__(self, retry_after_s: float, detail: str = "") -> None:
        super().__init__(detail or f"busy, try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s
