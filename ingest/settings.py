"""The settings of each command of `python -m ingest`."""

from ingest.contract.settings import (
    AckSettings,
    AdminSettings,
    AllTopicsSettings,
    AuthSettings,
    GroupSettings,
    KafkaSettings,
    ListenSettings,
    LogSettings,
    NetworkSettings,
    PathSettings,
    PushSettings,
    ShutdownSettings,
    SinkGroupSettings,
    SpoolSettings,
    TlsSettings,
    TopicNameSettings,
    WorkerSettings,
)
from ingest.runtime.settings import Settings


class ReceiveSettings(
    ListenSettings,
    PathSettings,
    WorkerSettings,
    PushSettings,
    SpoolSettings,
    AckSettings,
    AuthSettings,
    NetworkSettings,
    TlsSettings,
    KafkaSettings,
    TopicNameSettings,
    AdminSettings,
    ShutdownSettings,
    LogSettings,
    Settings,
):
    """What `receive` uses."""


class DrainSettings(SpoolSettings, KafkaSettings, TopicNameSettings, ShutdownSettings, LogSettings, Settings):
    """What `drain` uses."""


class SimulateSettings(PathSettings, LogSettings, Settings):
    """What `simulate` uses besides its own options."""


class TopicsSettings(KafkaSettings, AllTopicsSettings, LogSettings, Settings):
    """What `topics` uses."""


class AclsSettings(TopicNameSettings, GroupSettings, SinkGroupSettings, LogSettings, Settings):
    """What `acls` uses."""


class OpenApiSettings(PathSettings, PushSettings, LogSettings, Settings):
    """What `openapi` uses."""


class VerifySettings(PathSettings, AuthSettings, LogSettings, Settings):
    """What `verify` uses besides its own options."""


class IngestSettings(ReceiveSettings, TopicsSettings):
    """What any command of the package uses, for `config`."""
