"""The first answer of a broker, and why there is none.

aiokafka says of a login that is refused only that it could not connect. So one connection is made that goes as far as a
first answer, and whose error is told.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from ingest.runtime.errors import UsageError

REQUEST_TIMEOUT_MS = 10_000
REFUSAL_TIMEOUT_S = 3.0
"""Who refuses answers soon; whoever does not answer is away."""

_CLOSE_TIMEOUT_S = 1.0
_DETAIL_CHARS_MAX = 200


class LoginRefusedError(UsageError):
    """A broker answers, and will not have us, or we will not have it: waiting alone does not change that."""


class _ClosedError(KafkaError):  # type: ignore[misc]
    """A broker closed a connection before it answered anything."""


async def refusal(options: Mapping[str, Any]) -> str:
    """Why no broker that answers can be talked to, in words without secrets; "" if one can, or none answers.

    Args:
        options: from `client_options`.
    """
    try:
        async with asyncio.timeout(REFUSAL_TIMEOUT_S):
            await first_answer(options)
    except LoginRefusedError as error:
        return str(error)
    except (KafkaError, OSError):
        return ""
    return ""


def user_of(options: Mapping[str, Any]) -> str:
    """Who logs in, in words."""
    name = options.get("sasl_plain_username")
    return f"the user {name}" if name else "this user"


async def first_answer(options: Mapping[str, Any]) -> None:
    """Talk to one broker after the other until one has answered a question.

    Raises:
        LoginRefusedError: none has, and one will never.
        KafkaError, OSError: none has.
    """
    failed: Exception = KafkaConnectionError("no broker is named")
    for server in options.get("bootstrap_servers", ()):
        try:
            await _talk(server, options)
        except (KafkaError, OSError) as error:
            if not isinstance(failed, LoginRefusedError):
                failed = _verdict(server, error, options)
        else:
            return
    raise failed


async def _talk(server: str, options: Mapping[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    login = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    connection = AIOKafkaConnection(host.strip("[]"), int(port), request_timeout_ms=REQUEST_TIMEOUT_MS, **login)
    try:
        await connection.connect()
        await connection.send(MetadataRequest([]))
    except KafkaConnectionError as error:
        # Whoever could not connect gets an OSError: this one was let in and shown the door.
        raise _ClosedError(str(error)) from error
    finally:
        closed = connection.close()
        if connection._protocol is not None:  # noqa: SLF001 - there was a connection, whose end can be waited for
            await asyncio.wait({closed}, timeout=_CLOSE_TIMEOUT_S)


def _verdict(server: str, error: Exception, options: Mapping[str, Any]) -> Exception:
    """What an error of one broker comes to: a refusal for good, or something that may pass, in words."""
    refused = _refused(server, error, options)
    return LoginRefusedError(refused) if refused else KafkaConnectionError(_away(server, error, options))


def _refused(server: str, error: Exception, options: Mapping[str, Any]) -> str:
    match error:
        case SaslAuthenticationFailed():
            return f"Kafka at {server} refuses the login of {user_of(options)}: {_detail(error)}"
        case UnsupportedSaslMechanismError():
            return f"Kafka at {server} does not offer the login {options['sasl_mechanism']}"
        case IllegalSaslStateError():
            return f"Kafka at {server} takes no login: this is no port for SASL"
        case ssl.SSLCertVerificationError():
            return f"the certificate of Kafka at {server} is refused: {error.verify_message}"
        case _:
            return ""


def _away(server: str, error: Exception, options: Mapping[str, Any]) -> str:
    match error:
        case _ClosedError():
            return (
                f"{server} closes connections before it answers anything: it may want another security protocol, or a "
                "certificate of ours that it trusts"
            )
        case ssl.SSLError():
            return f"no TLS with {server}: {error.reason or error}"
        case ConnectionResetError() if options.get("security_protocol", "").endswith("SSL"):
            return f"no TLS with {server}: it closes the connection"
        case OSError(errno=int(number)) if number in errno.errorcode:
            return f"{server}: {os.strerror(number)}"
        case _:
            return f"{server}: {words_of(error)}"


def words_of(error: Exception) -> str:
    """An error's text without the name of its class, which aiokafka puts in front."""
    return str(error).removeprefix(f"{type(error).__name__}: ") or type(error).__name__


def _detail(error: KafkaError) -> str:
    """The broker's words alone: aiokafka puts the class and its number in front."""
    return (str(error.args[0]) if error.args and error.args[0] else type(error).__name__)[:_DETAIL_CHARS_MAX]
