"""Every public setting: name, type, default, bounds and one sentence (contract.md section 2).

The models are mixins, one per concern. A command composes those it uses; field `http_port` is `DLR_HTTP_PORT` in the
environment, `http_port` in the TOML file and `--http-port` on the command line. All of them stand here, for both
packages, because each command refuses a `DLR_*` name that nobody knows and must tell those of the other commands apart
from misspelled ones.

An empty text means unset wherever a setting may be unset. Lists are comma-separated; one of blanks and commas alone is
a mistake.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator
from pydantic.fields import FieldInfo

from ingest.contract.acls import Names
from ingest.contract.setting_types import (
    YEAR_S,
    Dsn,
    File,
    Files,
    Host,
    HostValues,
    Listed,
    Networks,
    PathPrefix,
    Port,
    Seconds,
    Secret,
    Servers,
    Text,
    TopicName,
    Unset,
    UrlPath,
    WholeSeconds,
    is_topic_name,
    strong_key,
)
from ingest.contract.topics import TopicNeeds, changelog_topic

PREFIX = "DLR_"

_GIB = 1 << 30
_MIB = 1 << 20


def _shown(text: str) -> dict[str, Any]:
    """What stands for a default that is decided later."""
    return {"default_text": text}


class KafkaSettings(BaseModel):
    """Kafka: where it is and how to log in."""

    kafka_bootstrap_servers: Servers = Field(default="127.0.0.1:9092", description="brokers to begin with, host:port")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to talk to the brokers"
    )
    kafka_sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, Unset] = Field(
        default=None, description="how to log in, with SASL_PLAINTEXT and SASL_SSL"
    )
    kafka_sasl_username: Text = Field(default=None, description="who logs in")
    kafka_sasl_password: Secret = Field(default=None, description="password of the login")
    kafka_ca_file: File = Field(default=None, description="certificates (PEM) that the brokers' must go back to")
    kafka_cert_file: File = Field(default=None, description="our own certificate (PEM) for the brokers")
    kafka_key_file: File = Field(default=None, description="its private key (PEM)")

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        login = (self.kafka_sasl_mechanism, self.kafka_sasl_username, self.kafka_sasl_password)
        if self.kafka_security_protocol.startswith("SASL"):
            if None in login:
                raise ValueError(
                    f"DLR_KAFKA_SECURITY_PROTOCOL {self.kafka_security_protocol} needs DLR_KAFKA_SASL_MECHANISM, "
                    "DLR_KAFKA_SASL_USERNAME and DLR_KAFKA_SASL_PASSWORD"
                )
        elif login != (None, None, None):
            raise ValueError(
                "DLR_KAFKA_SASL_MECHANISM, DLR_KAFKA_SASL_USERNAME and DLR_KAFKA_SASL_PASSWORD need "
                "DLR_KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT or SASL_SSL"
            )
        return self

    @model_validator(mode="after")
    def _certificates_are_whole(self) -> Self:
        if (self.kafka_cert_file is None) != (self.kafka_key_file is None):
            raise ValueError("DLR_KAFKA_CERT_FILE and DLR_KAFKA_KEY_FILE need each other")
        given = self.kafka_ca_file or self.kafka_cert_file
        if given and not self.kafka_security_protocol.endswith("SSL"):
            raise ValueError(
                "DLR_KAFKA_CA_FILE, DLR_KAFKA_CERT_FILE and DLR_KAFKA_KEY_FILE need DLR_KAFKA_SECURITY_PROTOCOL "
                "SSL or SASL_SSL"
            )
        return self


class TopicNameSettings(BaseModel):
    """Topics: their names."""

    reports_topic: TopicName = Field(default="sms.status-reports", description="topic of the single reports")
    results_topic: TopicName = Field(default="sms.message-results", description="topic of the results")
    dead_letters_topic: TopicName = Field(default="sms.dead-letters", description="topic of what could not be used")

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        names = {self.reports_topic, self.results_topic, self.dead_letters_topic}
        if len(names) != len(TopicNameSettings.model_fields):
            raise ValueError("DLR_REPORTS_TOPIC, DLR_RESULTS_TOPIC and DLR_DEAD_LETTERS_TOPIC must differ")
        return self

    def acl_names(self, *, group_id: str = "", sink_group_id: str = "") -> Names:
        """What rights are on; the groups are left out where a process has none."""
        return Names(
            reports_topic=self.reports_topic,
            results_topic=self.results_topic,
            dead_letters_topic=self.dead_letters_topic,
            group_id=group_id,
            sink_group_id=sink_group_id,
        )


class TopicShapeSettings(BaseModel):
    """Topics: what they are made with."""

    topic_partitions: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=12, description="partitions of reports, results and changelog; cannot be changed later"
    )
    topic_replication: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="replicas of each partition")
    topic_min_insync: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="replicas that must have a record before it counts as written"
    )
    reports_retention_s: WholeSeconds = Field(default=604_800, description="how long reports stay in their topic")

    @model_validator(mode="after")
    def _enough_replicas(self) -> Self:
        if self.topic_min_insync > self.topic_replication:
            raise ValueError("DLR_TOPIC_MIN_INSYNC must not be greater than DLR_TOPIC_REPLICATION")
        return self


class ListenSettings(BaseModel):
    """Receiver: where it listens."""

    http_host: Host = Field(default="127.0.0.1", description="address for the callbacks")
    http_port: Port = Field(default=8080, description="port for the callbacks; 0: a free one, logged")


class PathSettings(BaseModel):
    """Receiver: its paths."""

    batch_path: UrlPath = Field(default="/batchReport", description="path of the batch callback")
    single_path: UrlPath = Field(default="/report", description="path of the single callback")

    @model_validator(mode="after")
    def _paths_differ(self) -> Self:
        if self.batch_path == self.single_path:
            raise ValueError("DLR_BATCH_PATH and DLR_SINGLE_PATH must differ")
        return self


class WorkerSettings(BaseModel):
    """Receiver: processes and connections."""

    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1, description="worker processes; one that dies is replaced"
    )
    request_timeout_s: Seconds = Field(default=10, description="time for a request to be complete")
    keepalive_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        default=15, description="how long an idle connection stays open"
    )
    connections_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=2000, description="open connections of one worker at most"
    )
    connections_per_peer_max: Annotated[Annotated[int, Field(ge=0, le=1_000_000)] | None, Unset] = Field(
        default=None,
        description="of them from one address at most; 0: no bound; DLR_TRUSTED_PROXIES have none",
        json_schema_extra=_shown("half of DLR_CONNECTIONS_MAX"),
    )
    connection_max_age_s: Seconds = Field(
        default=600, description="age from which a connection is closed with its next answer"
    )


class PushSettings(BaseModel):
    """Receiver: the size of a push."""

    body_max_bytes: Annotated[int, Field(ge=1, le=64 * _MIB)] = Field(
        default=1_048_576, description="bytes of a body at most"
    )
    reports_max: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1000, description="reports of a push at most"
    )
    head_max_bytes: Annotated[int, Field(ge=1024, le=_MIB)] = Field(
        default=32_768, description="bytes of the head of a request at most"
    )
    headers_max: Annotated[int, Field(ge=16, le=10_000)] = Field(
        default=128, description="headers of a request at most, trailers included"
    )
    bodies_max_bytes: Annotated[int, Field(ge=_MIB)] = Field(
        default=256 * _MIB, description="bytes of requests in the memory of one worker at most"
    )


class SpoolSettings(BaseModel):
    """Spool: what is kept on disk before the answer."""

    spool_dir: Path = Field(default=Path("var/spool"), description="folder of the spool")
    spool_max_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=8 * _GIB, description="bytes of the whole folder at most"
    )
    spool_allow_volatile: bool = Field(
        default=False, description="accept tmpfs and network file systems, which may forget what was synced"
    )


class AckSettings(BaseModel):
    """Receiver: what an answer promises."""

    ack_mode: Literal["spool-or-kafka", "spool", "kafka"] = Field(
        default="spool-or-kafka", description="what must have the reports before the answer"
    )
    ack_timeout_s: Seconds = Field(default=5, description="wait for Kafka's confirmation before answering 503")


class AuthSettings(BaseModel):
    """Receiver: signatures."""

    auth_keys_file: File = Field(
        default=None, description="JSON object, access key to secret key; unset: no signature is asked for"
    )
    auth_clock_skew_s: Annotated[int, Field(ge=1, le=YEAR_S)] = Field(
        default=900, description="how far X-Sdk-Date may be off"
    )
    auth_external_hosts: HostValues = Field(
        default=(), description="behind a proxy: host values to try beside the received one"
    )
    auth_path_prefix: PathPrefix = Field(
        default="", description="behind a proxy: the path prefix that it removed, tried beside the path as received"
    )
    auth_connection_values: Annotated[tuple[Literal["close", "keep-alive"], ...], Listed] = Field(
        default=(), description="behind a proxy: connection values to try beside the received one (close, keep-alive)"
    )


class NetworkSettings(BaseModel):
    """Receiver: who may push."""

    allowed_networks: Networks = Field(default=(), description="networks (CIDR) that may push; unset: all")
    trusted_proxies: Networks = Field(default=(), description="networks (CIDR) whose X-Forwarded-For counts")


class TlsSettings(BaseModel):
    """Receiver: TLS."""

    tls_cert_files: Files = Field(default=(), description="certificate chains (PEM), RSA and ECDSA; unset: plain HTTP")
    tls_key_files: Files = Field(default=(), description="their private keys (PEM), in the same order")
    tls_max_version: Literal["1.3", "1.2"] = Field(default="1.3", description="highest version of TLS that is offered")

    @model_validator(mode="after")
    def _each_has_its_key(self) -> Self:
        if len(self.tls_cert_files) != len(self.tls_key_files):
            raise ValueError("DLR_TLS_CERT_FILES and DLR_TLS_KEY_FILES must name equally many files")
        return self


class GroupSettings(BaseModel):
    """Assembler: its group."""

    group_id: TopicName = Field(
        default="dlrflow-assembler",
        description="consumer group; a new one has no memory and emits the retained input again",
    )


class WindowSettings(BaseModel):
    """Assembler: how long a message is waited for and remembered."""

    reassembly_timeout_s: WholeSeconds = Field(default=259_200, description="wait for the missing parts of a message")
    late_window_s: WholeSeconds = Field(default=259_200, description="memory of a message after its last result")


class AssemblySettings(BaseModel):
    """Assembler: its memory on disk and its pace."""

    state_dir: Path = Field(default=Path("var/state"), description="folder of the assembler's memory")
    commit_interval_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        default=200, description="time between two transactions of a partition"
    )


class RecipientSettings(BaseModel):
    """Assembler: telephone numbers in results."""

    recipient_key: Annotated[SecretStr | None, Unset, AfterValidator(strong_key)] = Field(
        default=None,
        description="key of the hash that stands in results, sinks and memory in place of each; unset: the number",
    )


class SinkGroupSettings(BaseModel):
    """Sink: its group."""

    sink_group_id: Text = Field(
        default=None,
        description="consumer group of the sink",
        json_schema_extra=_shown("dlrflow-sink-<kind>"),
    )

    def group_of(self, kind: str) -> str:
        """The consumer group of the sink of this kind (`postgres`, `sqlite` or `jsonl`)."""
        return self.sink_group_id or f"dlrflow-sink-{kind}"


class DestinationSettings(BaseModel):
    """Sink: where the results go."""

    postgres_dsn: Dsn = Field(
        default=SecretStr("postgresql://127.0.0.1/dlrflow"),
        description="database of the postgres sink",
        json_schema_extra={"dsn": True},
    )
    sqlite_path: Path = Field(default=Path("var/results.db"), description="file of the sqlite sink")
    jsonl_dir: Path = Field(default=Path("var/results"), description="folder of the jsonl sink")


class AdminSettings(BaseModel):
    """Every long-running command: health and metrics."""

    admin_host: Host = Field(default="127.0.0.1", description="address for health and metrics")
    admin_port: Port = Field(
        default=9464,
        description="port for health and metrics; 0: a free one; the default gives way to a free one if taken",
    )


class ShutdownSettings(BaseModel):
    """Every long-running command: its end."""

    shutdown_grace_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=20, description="time for a clean end after SIGTERM"
    )


class LogSettings(BaseModel):
    """Every command: its log."""

    log_format: Annotated[Literal["console", "json"] | None, Unset] = Field(
        default=None,
        description="how log lines look",
        json_schema_extra=_shown("console on a terminal, else json"),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )


class AllTopicsSettings(TopicNameSettings, TopicShapeSettings, GroupSettings, WindowSettings):
    """What decides about all the topics."""

    @model_validator(mode="after")
    def _changelog_has_a_name(self) -> Self:
        if not is_topic_name(changelog_topic(self.group_id, self.reports_topic)):
            raise ValueError("DLR_GROUP_ID and DLR_REPORTS_TOPIC are too long for the name of the changelog topic")
        return self

    def topic_needs(self) -> TopicNeeds:
        """The topics as these settings want them."""
        return TopicNeeds(
            reports_topic=self.reports_topic,
            results_topic=self.results_topic,
            dead_letters_topic=self.dead_letters_topic,
            group_id=self.group_id,
            partitions=self.topic_partitions,
            replication=self.topic_replication,
            min_insync=self.topic_min_insync,
            reports_retention_s=self.reports_retention_s,
            reassembly_timeout_s=self.reassembly_timeout_s,
            late_window_s=self.late_window_s,
        )


GROUPS: tuple[type[BaseModel], ...] = (
    KafkaSettings,
    TopicNameSettings,
    TopicShapeSettings,
    ListenSettings,
    PathSettings,
    WorkerSettings,
    PushSettings,
    SpoolSettings,
    AckSettings,
    AuthSettings,
    NetworkSettings,
    TlsSettings,
    GroupSettings,
    WindowSettings,
    AssemblySettings,
    RecipientSettings,
    SinkGroupSettings,
    DestinationSettings,
    AdminSettings,
    ShutdownSettings,
    LogSettings,
)
"""All mixins, in the order in which settings are listed."""


def all_fields() -> Mapping[str, FieldInfo]:
    """Every setting of the product by its field name, in the order of `GROUPS`."""
    return {name: field for group in GROUPS for name, field in group.model_fields.items()}


def known_names() -> frozenset[str]:
    """Every setting of the product by its name in the environment, without the `NAME_FILE` forms of secrets."""
    return frozenset(PREFIX + name.upper() for name in all_fields())
