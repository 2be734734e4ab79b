"""The settings of each command of `python -m consumers`."""

from ingest.contract.settings import (
    AdminSettings,
    AllTopicsSettings,
    AssemblySettings,
    DestinationSettings,
    KafkaSettings,
    LogSettings,
    RecipientSettings,
    ShutdownSettings,
    SinkGroupSettings,
    TopicNameSettings,
    WindowSettings,
)
from ingest.runtime.settings import Settings


class AssembleSettings(
    AssemblySettings,
    RecipientSettings,
    KafkaSettings,
    AllTopicsSettings,
    AdminSettings,
    ShutdownSettings,
    LogSettings,
    Settings,
):
    """What `assemble` uses."""


class SinkSettings(
    SinkGroupSettings,
    DestinationSettings,
    KafkaSettings,
    TopicNameSettings,
    AdminSettings,
    ShutdownSettings,
    LogSettings,
    Settings,
):
    """What `sink` uses."""


class DeadLettersSettings(DestinationSettings, KafkaSettings, TopicNameSettings, LogSettings, Settings):
    """What `dead-letters` uses."""


class AuditSettings(DestinationSettings, KafkaSettings, TopicNameSettings, WindowSettings, LogSettings, Settings):
    """What `audit` uses."""


class ConsumersSettings(AssembleSettings, SinkSettings):
    """What any command of the package uses, for `config`."""
