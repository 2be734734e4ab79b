"""What `receive` hands to each worker that it starts."""

from dataclasses import dataclass

from ingest.receiver.keys import Keys
from ingest.receiver.tls import Pairs
from ingest.settings import ReceiveSettings


@dataclass(frozen=True, slots=True)
class Handover:
    """The settings, and what was last read well of files that change while the receiver runs.

    A worker reads those files itself. But one that takes the place of a dead worker while such a file is broken has
    nothing older to keep: it keeps what its parent has.

    Attributes:
        keys: None if no keys file is configured.
        pairs: certificates and their keys; None for plain HTTP.
    """

    settings: ReceiveSettings
    keys: Keys | None = None
    pairs: Pairs | None = None
