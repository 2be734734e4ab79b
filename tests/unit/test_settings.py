"""Settings: four places, their precedence, their origins, and one clear line for each mistake."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar

import pytest

from consumers.settings import AssembleSettings, ConsumersSettings, SinkSettings
from ingest.contract.settings import GROUPS, PREFIX, all_fields, known_names
from ingest.runtime.errors import UsageError
from ingest.runtime.settings import (
    DEFAULT,
    HIDDEN,
    Loaded,
    Settings,
    Surface,
    effective,
    load,
    rendered_default,
    without_password,
)
from ingest.settings import IngestSettings, ReceiveSettings, TopicsSettings

SURFACE = Surface(prefix=PREFIX, fields=all_fields())

# contract.md section 2, word for word; empty means unset.
CONTRACT = {
    "DLR_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9092",
    "DLR_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
    "DLR_KAFKA_SASL_MECHANISM": "",
    "DLR_KAFKA_SASL_USERNAME": "",
    "DLR_KAFKA_SASL_PASSWORD": "",
    "DLR_KAFKA_CA_FILE": "",
    "DLR_KAFKA_CERT_FILE": "",
    "DLR_KAFKA_KEY_FILE": "",
    "DLR_REPORTS_TOPIC": "sms.status-reports",
    "DLR_RESULTS_TOPIC": "sms.message-results",
    "DLR_DEAD_LETTERS_TOPIC": "sms.dead-letters",
    "DLR_TOPIC_PARTITIONS": "12",
    "DLR_TOPIC_REPLICATION": "1",
    "DLR_TOPIC_MIN_INSYNC": "1",
    "DLR_REPORTS_RETENTION_S": "604800",
    "DLR_HTTP_HOST": "127.0.0.1",
    "DLR_HTTP_PORT": "8080",
    "DLR_BATCH_PATH": "/batchReport",
    "DLR_SINGLE_PATH": "/report",
    "DLR_ADMIN_HOST": "127.0.0.1",
    "DLR_ADMIN_PORT": "9464",
    "DLR_WORKERS": "1",
    "DLR_BODY_MAX_BYTES": "1048576",
    "DLR_REPORTS_MAX": "1000",
    "DLR_REQUEST_TIMEOUT_S": "10",
    "DLR_KEEPALIVE_S": "15",
    "DLR_CONNECTIONS_MAX": "2000",
    "DLR_CONNECTIONS_PER_PEER_MAX": "half of DLR_CONNECTIONS_MAX",
    "DLR_HEAD_MAX_BYTES": "32768",
    "DLR_HEADERS_MAX": "128",
    "DLR_BODIES_MAX_BYTES": str(256 * 1024**2),
    "DLR_CONNECTION_MAX_AGE_S": "600",
    "DLR_SPOOL_DIR": "var/spool",
    "DLR_SPOOL_MAX_BYTES": str(8 * 1024**3),
    "DLR_SPOOL_ALLOW_VOLATILE": "false",
    "DLR_ACK_MODE": "spool-or-kafka",
    "DLR_ACK_TIMEOUT_S": "5",
    "DLR_SHUTDOWN_GRACE_S": "20",
    "DLR_AUTH_KEYS_FILE": "",
    "DLR_AUTH_CLOCK_SKEW_S": "900",
    "DLR_AUTH_EXTERNAL_HOSTS": "",
    "DLR_AUTH_PATH_PREFIX": "",
    "DLR_AUTH_CONNECTION_VALUES": "",
    "DLR_ALLOWED_NETWORKS": "",
    "DLR_TRUSTED_PROXIES": "",
    "DLR_TLS_CERT_FILES": "",
    "DLR_TLS_KEY_FILES": "",
    "DLR_TLS_MAX_VERSION": "1.3",
    "DLR_STATE_DIR": "var/state",
    "DLR_GROUP_ID": "dlrflow-assembler",
    "DLR_REASSEMBLY_TIMEOUT_S": "259200",
    "DLR_LATE_WINDOW_S": "259200",
    "DLR_COMMIT_INTERVAL_MS": "200",
    "DLR_RECIPIENT_KEY": "",
    "DLR_SINK_GROUP_ID": "dlrflow-sink-<kind>",
    "DLR_POSTGRES_DSN": "postgresql://127.0.0.1/dlrflow",
    "DLR_SQLITE_PATH": "var/results.db",
    "DLR_JSONL_DIR": "var/results",
    "DLR_LOG_FORMAT": "console on a terminal, else json",
    "DLR_LOG_LEVEL": "info",
}
S = TypeVar("S", bound=Settings)


def from_environment(model: type[S], **environ: str) -> Loaded[S]:
    """Load from an environment alone."""
    return load(model, SURFACE, environ=environ)


def mistake(model: type[Settings], environ: Mapping[str, str], **options: object) -> str:
    """Load what cannot be loaded and return the line about it."""
    with pytest.raises(UsageError) as caught:
        load(model, SURFACE, environ=environ, options=options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_settings_are_those_of_the_contract() -> None:
    """Names and defaults are exactly those that the contract lists."""
    shown = {SURFACE.name(field): rendered_default(info) for field, info in all_fields().items()}

    assert shown == CONTRACT
    assert known_names() == CONTRACT.keys()


def test_every_setting_belongs_to_a_command() -> None:
    """No setting is offered that no command reads."""
    assert all_fields().keys() == IngestSettings.model_fields.keys() | ConsumersSettings.model_fields.keys()


def test_every_default_is_allowed_where_it_is_spelled_out() -> None:
    """Writing a default into the environment changes nothing."""
    decided = {"DLR_SINK_GROUP_ID", "DLR_LOG_FORMAT", "DLR_CONNECTIONS_PER_PEER_MAX"}
    environ = {name: value for name, value in CONTRACT.items() if name not in decided}

    for model in (IngestSettings, ConsumersSettings):
        assert load(model, SURFACE, environ=environ).settings == model()


def test_every_setting_is_described() -> None:
    """Help has a sentence for each setting, and each group has a title."""
    assert all(info.description for info in all_fields().values())
    assert all(group.__doc__ for group in GROUPS)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each value comes from the highest place that has one, and says which that was."""
    file = tmp_path / "dlr.toml"
    file.write_text('http_port = 1\nbatch_path = "/file"\nworkers = 3\nstate_dir = "of another command"\n')

    loaded = load(
        ReceiveSettings,
        SURFACE,
        environ={"DLR_HTTP_PORT": "2", "DLR_BATCH_PATH": "/environment", "DLR_STATE_DIR": "of another command"},
        options={"http_port": "3", "batch_path": None},
        config_file=file,
    )

    settings = loaded.settings
    assert (settings.http_port, settings.batch_path, settings.workers) == (3, "/environment", 3)
    assert loaded.origins["http_port"] == "the command line, --http-port"
    assert loaded.origins["batch_path"] == "the environment, DLR_BATCH_PATH"
    assert loaded.origins["workers"] == f"the file {file}, workers"
    assert loaded.origins["single_path"] == DEFAULT


def test_only_what_was_chosen_is_explicit() -> None:
    """A port that stands where its default would be is still somebody's choice."""
    assert from_environment(ReceiveSettings, DLR_ADMIN_PORT="9464").settings.is_explicit("admin_port")
    assert not from_environment(ReceiveSettings).settings.is_explicit("admin_port")


def test_making_settings_reads_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `load` looks at an environment, and only at the one it is given."""
    monkeypatch.setenv("DLR_HTTP_PORT", "1")

    assert ReceiveSettings().http_port == 8080
    assert from_environment(ReceiveSettings).settings.http_port == 8080


def test_an_empty_text_in_the_environment_means_unset() -> None:
    """Compose files and .env files write empty values for what they leave out."""
    loaded = load(IngestSettings, SURFACE, environ=dict.fromkeys(CONTRACT, ""))

    assert loaded.settings == IngestSettings()
    assert set(loaded.origins.values()) == {DEFAULT}


def test_an_empty_option_empties_a_list() -> None:
    """The command line can take back what the environment lists."""
    environ = {"DLR_ALLOWED_NETWORKS": "10.0.0.0/8", "DLR_AUTH_KEYS_FILE": "keys.json"}

    loaded = load(ReceiveSettings, SURFACE, environ=environ, options={"allowed_networks": "", "auth_keys_file": ""})

    assert loaded.settings.allowed_networks == ()
    assert loaded.settings.auth_keys_file is None


def test_lists_are_comma_separated_or_toml_lists(tmp_path: Path) -> None:
    """Blanks around an item do not count; a TOML file may use its own lists."""
    file = tmp_path / "dlr.toml"
    file.write_text('trusted_proxies = ["::1/128"]')

    settings = load(
        ReceiveSettings,
        SURFACE,
        environ={"DLR_ALLOWED_NETWORKS": "117.78.29.0/24, 2001:db8::/32,", "DLR_AUTH_CONNECTION_VALUES": "close"},
        config_file=file,
    ).settings

    assert settings.allowed_networks == (ip_network("117.78.29.0/24"), ip_network("2001:db8::/32"))
    assert settings.trusted_proxies == (ip_network("::1/128"),)
    assert settings.auth_connection_values == ("close",)


@pytest.mark.parametrize("name", [PREFIX + name.upper() for name, field in all_fields().items() if field.default == ()])
@pytest.mark.parametrize("value", [",", " ", " , ", ",,", "\t"])
def test_a_list_that_names_nothing_is_a_mistake(name: str, value: str) -> None:
    """A template whose variables came out empty must not open the port to everybody."""
    line = mistake(IngestSettings, {name: value})

    assert (
        line == f"{name} (from the environment) is {value!r} but needs comma-separated values, or to be empty: "
        "it names none"
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DLR_HTP_PORT", "DLR_HTTP_PORT"),
        ("DLR_http_port", "DLR_HTTP_PORT"),
        ("DLR_KAFKA_PASSWORD_FILE", "DLR_KAFKA_SASL_PASSWORD_FILE"),
        ("DLR_HTTP_PORT_FILE", "DLR_HTTP_PORT"),
    ],
)
def test_an_unknown_name_names_the_nearest_known_one(name: str, nearest: str) -> None:
    """A misspelled setting is refused, whichever command reads it."""
    assert mistake(TopicsSettings, {name: "1"}) == f"unknown setting {name} in the environment; did you mean {nearest}?"


def test_even_the_bare_prefix_is_unknown() -> None:
    """Whatever begins with the prefix is ours to understand."""
    assert mistake(TopicsSettings, {"DLR_": "1"}).startswith(
        "unknown setting DLR_ in the environment; did you mean DLR_"
    )


def test_an_unknown_name_in_the_file_names_the_nearest_known_one(tmp_path: Path) -> None:
    """Files hold no other names than settings."""
    file = tmp_path / "dlr.toml"
    file.write_text("htp_port = 1")

    with pytest.raises(
        UsageError, match=r"^unknown setting htp_port in the file .*dlr\.toml; did you mean http_port\?$"
    ):
        load(ReceiveSettings, SURFACE, environ={}, config_file=file)


@pytest.mark.parametrize("name", ["HTTP_PORT", "DLR_HTTP_PORT"])
def test_the_spelling_of_the_environment_is_understood_in_the_file(tmp_path: Path, name: str) -> None:
    """Whoever copies a name from the environment is told how the file spells it."""
    file = tmp_path / "dlr.toml"
    file.write_text(f"{name} = 1")

    with pytest.raises(UsageError, match=rf"unknown setting {name} .*; did you mean http_port\?$"):
        load(ReceiveSettings, SURFACE, environ={}, config_file=file)


@pytest.mark.parametrize(("content", "says"), [(b"http_port = ", "is not TOML"), (b"\xff", "is not TOML")])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    """A broken file is a mistake of one line."""
    file = tmp_path / "dlr.toml"
    file.write_bytes(content)

    with pytest.raises(UsageError, match=says):
        load(ReceiveSettings, SURFACE, environ={}, config_file=file)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    """A file that was asked for is not silently skipped."""
    with pytest.raises(UsageError, match="No such file"):
        load(ReceiveSettings, SURFACE, environ={}, config_file=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DLR_HTTP_PORT", "http", "a whole number at least 0 and at most 65535"),
        ("DLR_HTTP_PORT", "65536", "a whole number at least 0 and at most 65535"),
        ("DLR_CONNECTIONS_PER_PEER_MAX", "x", "a whole number at least 0 and at most 1000000"),
        ("DLR_CONNECTIONS_PER_PEER_MAX", "99999999", "a whole number at least 0 and at most 1000000"),
        ("DLR_ACK_TIMEOUT_S", "nan", "a number above 0 and at most 31622400"),
        ("DLR_ACK_MODE", "disk", "one of spool-or-kafka, spool, kafka"),
        ("DLR_SPOOL_ALLOW_VOLATILE", "maybe", "true or false"),
        ("DLR_ALLOWED_NETWORKS", "10.0.0.1/8", "networks such as 10.0.0.0/8"),
        ("DLR_BATCH_PATH", "batch", "a path that begins with '/'"),
        ("DLR_REPORTS_TOPIC", "a b", "letters, digits"),
        ("DLR_KAFKA_BOOTSTRAP_SERVERS", "kafka", "host:port"),
        ("DLR_AUTH_CONNECTION_VALUES", "open", "comma-separated close or keep-alive"),
        ("DLR_AUTH_EXTERNAL_HOSTS", "a b", "Host header"),
        ("DLR_AUTH_PATH_PREFIX", "x", "a path that begins with '/'"),
        ("DLR_TLS_MAX_VERSION", "1.1", "one of 1.3, 1.2"),
    ],
)
def test_a_wrong_value_says_where_what_and_what_is_allowed(name: str, value: str, allowed: str) -> None:
    """One line: the setting, its place, what it says and what it may say."""
    line = mistake(IngestSettings, {name: value})

    assert line.startswith(f"{name} (from the environment) is {value!r} but needs ")
    assert allowed in line


def test_a_wrong_option_is_named_as_it_was_typed() -> None:
    """Who typed an option looks for it, not for a variable."""
    assert mistake(ReceiveSettings, {}, http_port="x").startswith(
        "--http-port (from the command line) is 'x' but needs"
    )


def test_a_long_wrong_value_is_cut() -> None:
    """A whole file pasted into a variable does not become the error."""
    assert len(mistake(ReceiveSettings, {"DLR_HTTP_PORT": "9" * 5000})) < 300


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"DLR_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "needs DLR_KAFKA_SASL_MECHANISM"),
        ({"DLR_KAFKA_SASL_USERNAME": "me"}, "need DLR_KAFKA_SECURITY_PROTOCOL SASL_PLAINTEXT or SASL_SSL"),
        ({"DLR_KAFKA_SECURITY_PROTOCOL": "SSL", "DLR_KAFKA_CERT_FILE": "c"}, "need each other"),
        ({"DLR_KAFKA_CA_FILE": "ca"}, "SSL or SASL_SSL"),
        ({"DLR_TLS_CERT_FILES": "a,b", "DLR_TLS_KEY_FILES": "a"}, "equally many"),
        ({"DLR_BATCH_PATH": "/report"}, "must differ"),
        ({"DLR_RESULTS_TOPIC": "sms.dead-letters"}, "must differ"),
        ({"DLR_TOPIC_MIN_INSYNC": "2"}, "must not be greater"),
        ({"DLR_GROUP_ID": "g" * 240}, "too long"),
    ],
)
def test_settings_that_do_not_go_together_are_named(environ: dict[str, str], says: str) -> None:
    """What only makes sense together is checked together, before anything starts."""
    line = mistake(IngestSettings, environ)

    assert says in line
    assert "DLR_" in line


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """`NAME_FILE` reads the secret; the newline at the end of the file is not part of it."""
    file = tmp_path / "dsn"
    file.write_text("postgresql://u:from-file@h/d\n")

    loaded = from_environment(SinkSettings, DLR_POSTGRES_DSN_FILE=str(file))

    assert loaded.settings.postgres_dsn.get_secret_value() == "postgresql://u:from-file@h/d"
    assert loaded.origins["postgres_dsn"] == "the environment, DLR_POSTGRES_DSN_FILE"


def test_a_secret_and_its_file_are_one_too_many(tmp_path: Path) -> None:
    """Two answers to one question are refused instead of one being chosen."""
    environ = {"DLR_POSTGRES_DSN": "postgresql://h/d", "DLR_POSTGRES_DSN_FILE": str(tmp_path / "x")}

    assert "DLR_POSTGRES_DSN and DLR_POSTGRES_DSN_FILE are both set in the environment" in mistake(
        SinkSettings, environ
    )


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The line names the setting and the file."""
    line = mistake(SinkSettings, {"DLR_POSTGRES_DSN_FILE": str(tmp_path / "none")})

    assert line == f"DLR_POSTGRES_DSN_FILE: {tmp_path / 'none'}: No such file or directory"


def test_a_wrong_secret_is_not_shown() -> None:
    """Neither a refused DSN nor a password next to another mistake is in the line."""
    environ = {
        "DLR_POSTGRES_DSN": "mysql://u:hunter2@h/d",
        "DLR_KAFKA_SASL_PASSWORD": "hunter3",
        "DLR_ADMIN_PORT": "x",
    }

    line = mistake(SinkSettings, environ)

    assert "DLR_POSTGRES_DSN (from the environment) needs a URL" in line
    assert "hunter" not in line


def test_effective_settings_hide_every_secret() -> None:
    """Names, values and origins are shown, passwords are not, wherever they stand in a DSN."""
    loaded = from_environment(
        ConsumersSettings,
        DLR_POSTGRES_DSN="postgresql://user:hunter2@db:5432/results?sslmode=require&sslpassword=hunter3&password=hunter4",
        DLR_KAFKA_SECURITY_PROTOCOL="SASL_SSL",
        DLR_KAFKA_SASL_MECHANISM="PLAIN",
        DLR_KAFKA_SASL_USERNAME="me",
        DLR_KAFKA_SASL_PASSWORD="hunter5",  # noqa: S106 not one of anything
    )

    rows = {name: (value, origin) for name, value, origin in effective(SURFACE, loaded)}

    assert rows["DLR_POSTGRES_DSN"][0] == (
        f"postgresql://user:{HIDDEN}@db:5432/results?sslmode=require&sslpassword={HIDDEN}&password={HIDDEN}"
    )
    assert rows["DLR_KAFKA_SASL_PASSWORD"] == (HIDDEN, "the environment, DLR_KAFKA_SASL_PASSWORD")
    assert rows["DLR_COMMIT_INTERVAL_MS"] == ("200", DEFAULT)
    assert "hunter" not in str(rows) + repr(loaded) + str(loaded.settings)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://h/d", "postgresql://h/d"),
        ("postgresql://u@h:1/d?sslmode=require", "postgresql://u@h:1/d?sslmode=require"),
        ("postgresql://u:hunter2@h/d", f"postgresql://u:{HIDDEN}@h/d"),
        ("postgresql://u:hunter@2@h/d", f"postgresql://u:{HIDDEN}@h/d"),
        ("postgresql://h/d?PassWord=hunter@2", f"postgresql://h/d?PassWord={HIDDEN}"),
        ("postgresql://h/d?p%61ssword=hunter2", f"postgresql://h/d?p%61ssword={HIDDEN}"),
        ("postgresql://u:hunter/2@h/d", HIDDEN),
        ("postgresql://u:hunter?2@h/d", HIDDEN),
        ("postgresql://u:hunter#2@h/d", HIDDEN),
        ("postgresql://u:[hunter2@h/d", HIDDEN),
    ],
)
def test_no_way_of_writing_a_dsn_shows_its_password(dsn: str, shown: str) -> None:
    """What is not written as a URL should be is hidden as a whole."""
    assert without_password(dsn) == shown


def test_a_dsn_that_cannot_be_parsed_is_not_quoted() -> None:
    """Libraries quote what they refuse; we do not."""
    assert "hunter" not in mistake(SinkSettings, {"DLR_POSTGRES_DSN": "mysql://u:hunter\u2100@h/d"})


def test_a_sink_has_a_group_of_its_kind_unless_one_is_set() -> None:
    """Two kinds of sinks each get every result."""
    assert SinkSettings().group_of("sqlite") == "dlrflow-sink-sqlite"
    assert SinkSettings(sink_group_id="mine").group_of("sqlite") == "mine"


def test_the_topics_follow_from_the_settings() -> None:
    """Topics and assembler derive the same topics from the same settings."""
    environ = {"DLR_GROUP_ID": "g", "DLR_LATE_WINDOW_S": "7", "DLR_TOPIC_PARTITIONS": "3"}

    needs = from_environment(TopicsSettings, **environ).settings.topic_needs()

    assert needs == from_environment(AssembleSettings, **environ).settings.topic_needs()
    assert (needs.group_id, needs.late_window_s, needs.partitions) == ("g", 7, 3)
