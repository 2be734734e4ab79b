"""The types of settings: what a text may say, and the words for one that it may not.

The words of an error follow the name and the value of a setting ("... is 'x' but needs ..."), so they begin with
"needs". They never quote a secret.
"""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr

_KEY_CHARS_LEAST = 32
YEAR_S = 366 * 86_400
EXTERNAL_HOSTS_MAX = 8
_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
_HOST_VALUE = re.compile(r"[A-Za-z0-9.\-\[\]:_]+")
_ACCESS_PATH = re.compile(r"/[!-\"$-&(->@-~]*")


def _unset(value: object) -> object:
    """Read an empty text as unset."""
    return None if value == "" else value


def _listed(value: object) -> object:
    """Read comma-separated text as a list; blanks around an item do not count, nor do empty items beside others.

    Only an empty text means none: one of blanks and commas is a template whose variables came out empty, and to read it
    as unset would let in everybody.
    """
    if isinstance(value, str):
        items = tuple(item for item in (part.strip() for part in value.split(",")) if item)
        if value and not items:
            raise ValueError("needs comma-separated values, or to be empty: it names none")
        return items
    return tuple(value) if isinstance(value, list) else value


def _servers(value: str) -> str:
    """Hold each of the comma-separated addresses to `host:port`."""
    for server in value.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65_535):  # noqa: PLR2004
            raise ValueError("needs comma-separated addresses host:port")
    return value


def is_topic_name(value: str) -> bool:
    """Whether Kafka takes it as the name of a topic."""
    return value not in {".", ".."} and _TOPIC_NAME.fullmatch(value) is not None


def _topic(value: str) -> str:
    if not is_topic_name(value):
        raise ValueError("needs 1 to 249 letters, digits, '.', '_' and '-'")
    return value


def _path(value: str) -> str:
    if not _ACCESS_PATH.fullmatch(value):
        raise ValueError("needs a path that begins with '/', without query, blanks or quotes")
    return value


def _prefix(value: str) -> str:
    return _path(value).rstrip("/") if value else value


def _network(value: object) -> object:
    if isinstance(value, str):
        try:
            return ip_network(value)
        except ValueError as error:
            raise ValueError(f"needs comma-separated networks such as 10.0.0.0/8; {error}") from None
    return value


def _host_value(value: str) -> str:
    if not _HOST_VALUE.fullmatch(value):
        raise ValueError("needs comma-separated values of a Host header, such as dlr.example.com:8443")
    return value


def _few_hosts(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) > EXTERNAL_HOSTS_MAX:
        raise ValueError(f"needs {EXTERNAL_HOSTS_MAX} values at most, because each is tried for each push")
    return values


def _dsn(value: SecretStr) -> SecretStr:
    # Parsers quote what they refuse, and this is a secret.
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("needs a URL such as postgresql://user@host/database")
    return value


def strong_key(value: SecretStr | None) -> SecretStr | None:
    """Hold the key of a hash to a length at which nobody can try all of them."""
    if value is not None and len(value.get_secret_value()) < _KEY_CHARS_LEAST:
        raise ValueError(f"needs at least {_KEY_CHARS_LEAST} characters, such as `openssl rand -hex 32` prints")
    return value


Unset = BeforeValidator(_unset)
"""Reads an empty text as unset."""
Listed = BeforeValidator(_listed)
"""Reads comma-separated text as a list."""
Servers = Annotated[str, AfterValidator(_servers)]
Host = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=0, le=65_535)]
TopicName = Annotated[str, AfterValidator(_topic)]
UrlPath = Annotated[str, AfterValidator(_path)]
Text = Annotated[str | None, Unset]
File = Annotated[Path | None, Unset]
Secret = Annotated[SecretStr | None, Unset]
Files = Annotated[tuple[Path, ...], Listed]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network), PlainSerializer(str)]
Networks = Annotated[tuple[Network, ...], Listed]
Seconds = Annotated[float, Field(gt=0, le=YEAR_S, allow_inf_nan=False)]
HostValues = Annotated[tuple[Annotated[str, AfterValidator(_host_value)], ...], Listed, AfterValidator(_few_hosts)]
PathPrefix = Annotated[str, AfterValidator(_prefix)]
Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
WholeSeconds = Annotated[int, Field(ge=1, le=10 * YEAR_S)]
