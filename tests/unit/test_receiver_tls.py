"""Certificates: what is taken at the start, what becomes of them later, and what an operator is told."""

import asyncio
import errno
import os
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from ingest.commands.receive_tls import CertificatesReport, certificates, warn_of_plain_http
from ingest.contract.settings import NetworkSettings, TlsSettings
from ingest.receiver.certificates import Certificates
from ingest.receiver.tls import Pairs, TlsFiles
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import UsageError
from tests.certificates import UNKNOWN_CURVE, Authority, Kind, PairOfFiles

EXPIRY = "dlrflow_tls_certificate_expiry_timestamp_seconds"


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Issues the certificates."""
    return Authority()


@pytest.fixture
def log() -> Iterator[list[EventDict]]:
    """What was logged."""
    with capture_logs() as lines:
        yield lines


def files_of(*pairs: PairOfFiles) -> TlsFiles:
    """As the settings would name them."""
    return TlsFiles(certs=tuple(pair.cert for pair in pairs), keys=tuple(pair.key for pair in pairs), max_version="1.3")


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.looks = 0

    def looked(self, _served: object) -> None:
        """See `CertificatesWatcher`."""
        self.looks += 1

    def late(self) -> None:
        """See `CertificatesWatcher`."""
        self.said.append("late")

    def renewed(self, _served: object) -> None:
        """See `CertificatesWatcher`."""
        self.said.append("renewed")

    def broken(self, why: str) -> None:
        """See `CertificatesWatcher`."""
        self.said.append(why)


async def settle(served: Certificates) -> None:
    """What the files hold is taken over, as two looks do it."""
    await served.look()
    assert await served.look()


# What is taken at the start.


@pytest.mark.parametrize(
    ("kind", "spoil", "why"),
    [
        ("RSA", lambda pair, _: pair.cert.unlink(), "RSA.crt cannot be read: No such file or directory"),
        ("RSA", lambda pair, _: pair.key.unlink(), "RSA.key cannot be read: No such file or directory"),
        ("RSA", lambda pair, _: pair.cert.write_bytes(b""), "RSA.crt holds no certificate (PEM)"),
        ("RSA", lambda pair, _: pair.cert.write_bytes(pair.key.read_bytes()), "RSA.crt holds no certificate (PEM)"),
        ("RSA", lambda pair, _: pair.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\n"), "holds no private key (PEM)"),
        ("RSA", lambda pair, _: pair.key.write_bytes(bytes(1 << 21)), "RSA.key is larger than 1048576 bytes"),
        ("RSA", lambda pair, other: pair.key.write_bytes(other.issue("RSA")[1]), "does not belong to the certificate"),
        ("RSA", lambda pair, other: pair.key.write_bytes(other.issue("ECDSA")[1]), "holds no private key (PEM) for"),
        ("ECDSA", lambda pair, other: pair.key.write_bytes(other.issue("ECDSA")[1]), "does not belong to"),
        ("ECDSA", lambda pair, _: pair.key.write_bytes(encrypted(pair.key.read_bytes())), "is encrypted: it must be"),
        ("ECDSA", lambda pair, _: pair.write(*UNKNOWN_CURVE), "ECDSA.key"),
        ("ECDSA", lambda pair, _: as_pipe(pair.key), "cannot be read: Is no regular file"),
        ("ECDSA", lambda pair, _: as_folder(pair.cert), "cannot be read: Is a directory"),
    ],
)
def test_a_pair_that_cannot_be_used_is_named_in_one_line(
    authority: Authority, tmp_path: Path, kind: Kind, spoil: Callable[[PairOfFiles, Authority], object], why: str
) -> None:
    """Status 2 says which file and why, and quotes nothing of it."""
    pair = authority.pair(tmp_path, kind)
    spoil(pair, authority)

    with pytest.raises(UsageError) as raised:
        Certificates(files_of(pair))

    said = str(raised.value)
    assert said.startswith("DLR_TLS_CERT_FILES, DLR_TLS_KEY_FILES: ")
    assert why in said
    assert "\n" not in said
    assert raised.value.status == 2


def as_pipe(path: Path) -> None:
    """A pipe that nobody writes to, in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink()
    path.mkdir()


def encrypted(key: bytes) -> bytes:
    """The same key under a passphrase."""
    return load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )


def test_two_certificates_of_one_kind_are_a_mistake(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL would serve the second and say nothing."""
    (tmp_path / "other").mkdir()

    with pytest.raises(UsageError, match="are both RSA: one of each kind can be served"):
        Certificates(files_of(authority.pair(tmp_path, "RSA"), authority.pair(tmp_path / "other", "RSA")))


def test_numbers_of_files_must_be_equal() -> None:
    """Which key belongs to which certificate is their order."""
    with pytest.raises(ValueError, match="must name equally many files"):
        TlsSettings(tls_cert_files=(Path("a"), Path("b")), tls_key_files=(Path("a"),))


def test_an_expired_certificate_is_served_with_a_warning(
    authority: Authority, tmp_path: Path, log: list[EventDict]
) -> None:
    """A sender may not look at dates; refusing every push for them would lose all."""
    pair = authority.pair(tmp_path, "ECDSA", lives=timedelta(days=-1))
    registry = CollectorRegistry()
    settings = TlsSettings(tls_cert_files=(pair.cert,), tls_key_files=(pair.key,))

    served = certificates(settings, registry, SystemClock(), lambda _: None)

    assert served is not None
    assert isinstance(served.context, ssl.SSLContext)
    [line] = log
    assert (line["log_level"], line["event"], line["file"], line["days_left"]) == (
        "warning",
        "a certificate has expired",
        str(pair.cert),
        -1.0,
    )


# What becomes of them.


async def test_a_change_is_taken_over_by_its_content(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes does it: the files are links through a folder that is swapped, with times of their own."""
    old, new = tmp_path / "..1", tmp_path / "..2"
    for folder in (old, new):
        folder.mkdir()
        pair = authority.pair(folder, "ECDSA")
        pair.write(*authority.issue("ECDSA"))
        for path in (pair.cert, pair.key):
            os.utime(path, (1, 1))
    (tmp_path / "..data").symlink_to(old)
    told = Told()
    files = files_of(PairOfFiles(tmp_path / "..data/ECDSA.crt", tmp_path / "..data/ECDSA.key"))
    served = Certificates(files, watcher=told)
    first = served.context
    assert await served.look()
    assert served.context is first

    (tmp_path / "..next").symlink_to(new)
    (tmp_path / "..next").replace(tmp_path / "..data")
    await settle(served)

    assert served.context is not first
    assert told.said == ["renewed"]


async def test_files_that_do_not_fit_change_nothing_and_are_told_once(authority: Authority, tmp_path: Path) -> None:
    """A certificate came without its key: the old ones stay until it does; what is gone again is fine, too."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)
    first, content = served.context, pair.cert.read_bytes()
    cert, key = authority.issue("ECDSA")

    pair.cert.write_bytes(cert)
    for _ in range(2):
        await settle(served)
    assert served.context is first
    assert told.said == [f"the key in {pair.key} does not belong to the certificate in {pair.cert}"]
    pair.cert.write_bytes(cert[:100])
    await settle(served)
    assert told.said[1:] == [f"{pair.cert} holds no certificate (PEM)"]
    pair.cert.unlink()
    await settle(served)
    assert told.said[2:] == [f"{pair.cert} cannot be read: No such file or directory"]
    pair.cert.write_bytes(content)
    await settle(served)
    assert told.said[3:] == ["renewed"]
    second = served.context
    pair.write(cert, key)
    await settle(served)

    assert told.said[4:] == ["renewed"]
    assert len({first, second, served.context}) == 3


async def test_what_changes_under_our_eyes_is_judged_later(authority: Authority, tmp_path: Path) -> None:
    """Between the certificate and its key, nobody is alarmed."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)
    cert, key = authority.issue("ECDSA")

    pair.cert.write_bytes(cert)
    assert not await served.look()
    pair.key.write_bytes(key)
    assert not await served.look()
    assert told.said == []
    assert await served.look()

    assert told.said == ["renewed"]


async def test_a_chain_is_not_served_without_its_end(authority: Authority, tmp_path: Path) -> None:
    """Half of a file that is written in place can be whole certificates, only not all of them."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)
    cert, key = authority.issue("ECDSA")
    whole = cert + authority.issue("RSA")[0]
    pair.write(cert, key)

    assert not await served.look()
    pair.cert.write_bytes(whole)
    assert not await served.look()
    assert await served.look()

    assert told.said == ["renewed"]
    assert served.served.pairs[0].cert == whole


async def test_a_curve_that_only_openssl_knows_changes_nothing(authority: Authority, tmp_path: Path) -> None:
    """It can be loaded and not be read: the certificates before are served on, and the alarm quotes nothing."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)
    first = served.context

    pair.write(*UNKNOWN_CURVE)
    await settle(served)

    assert served.context is first
    [said] = told.said
    assert str(pair.cert) in said
    assert "1.3.132" not in said


async def test_whatever_a_library_raises_is_an_alarm(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions, dates and more: what can be raised over a file is no closed set."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)

    def raises(_data: bytes) -> object:
        raise x509.InvalidVersion("secret", 7)

    monkeypatch.setattr(x509, "load_pem_x509_certificates", raises)
    pair.write(*authority.issue("ECDSA"))
    await settle(served)

    assert told.said == [f"{pair.cert} with the key in {pair.key} cannot be used here: InvalidVersion"]


@pytest.mark.parametrize("call", ["open", "memfd_create"])
async def test_a_machine_without_descriptors_is_asked_again(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[EventDict], call: str
) -> None:
    """The files are not to blame, so they raise no alarm; they are served once there are descriptors again."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)
    cert, key = authority.issue("ECDSA")
    pair.write(cert, key)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_descriptor)
        looks = [await served.look() for _ in range(4)]
        with pytest.raises(UsageError, match="DLR_TLS_KEY_FILES: Too many open files"):
            Certificates(files_of(pair))
    assert not any(looks)
    assert told.said == []
    assert [line["because"] for line in log] == ["Too many open files"]
    await served.look()
    await served.look()

    assert told.said == ["renewed"]
    assert served.served.pairs[0].cert == cert


def no_descriptor(*_args: object) -> int:
    """As a call fails when a process has too many."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_without_files_in_memory_the_alarm_says_so(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That does not pass by itself, such as a call that a container forbids."""
    pair = authority.pair(tmp_path, "ECDSA")
    told = Told()
    served = Certificates(files_of(pair), watcher=told)

    def forbidden(_name: str) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    pair.write(*authority.issue("ECDSA"))
    await settle(served)

    assert told.said == [f"{pair.cert} with the key in {pair.key} cannot be used here: PermissionError"]


async def test_a_worker_begins_with_what_its_parent_could_use(authority: Authority, tmp_path: Path) -> None:
    """One that takes a dead one's place while the files are broken serves on; its own look finds them mended."""
    pair = authority.pair(tmp_path, "ECDSA")
    pairs = Certificates(files_of(pair)).served.pairs
    pair.key.unlink()

    served = Certificates(files_of(pair), pairs)
    await settle(served)
    assert served.served.pairs == pairs
    pair.write(*authority.issue("ECDSA"))
    await settle(served)

    assert served.served.pairs != pairs


async def test_the_files_are_looked_at_every_second(authority: Authority, tmp_path: Path) -> None:
    """Five seconds are promised."""
    told = Told()
    served = Certificates(files_of(authority.pair(tmp_path, "ECDSA")), watcher=told)
    slept: list[float] = []
    enough = asyncio.Event()

    class Clock(SystemClock):
        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                enough.set()
                await asyncio.Event().wait()

    following = asyncio.create_task(served.follow(Clock()))
    await asyncio.wait_for(enough.wait(), 10)
    following.cancel()

    assert (slept, told.looks) == ([1.0] * 3, 3)


def test_keys_show_in_no_text(authority: Authority, tmp_path: Path) -> None:
    """Neither in a log line nor in a traceback that prints values."""
    pairs = Certificates(files_of(authority.pair(tmp_path, "ECDSA"))).served.pairs

    assert "PRIVATE" not in repr(pairs)


# What an operator is told.


class Calendar(SystemClock):
    """A clock that is put forward."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return super().wall_ms() + int(self.later_s * 1000)


def test_the_end_of_a_certificate_is_a_metric_and_warned_of_twice(
    authority: Authority, tmp_path: Path, log: list[EventDict]
) -> None:
    """Once when fourteen days are left, once when it has come; not with every look."""
    pair = authority.pair(tmp_path, "ECDSA", lives=timedelta(days=90))
    registry, clock = CollectorRegistry(), Calendar()
    served = Certificates(files_of(pair)).served
    report = CertificatesReport(registry, clock, lambda _: None)

    for days in (0, 75.9, 76.1, 80, 89.9, 90.1, 91):
        clock.later_s = days * 86_400
        report.looked(served)

    assert [(line["event"], line["days_left"]) for line in log] == [
        ("a certificate expires soon", 13.9),
        ("a certificate has expired", -0.1),
    ]
    assert registry.get_sample_value(EXPIRY, {"file": str(pair.cert)}) == served.certificates[0].expires_at


async def test_changes_are_counted_and_an_alarm_stands(
    authority: Authority, tmp_path: Path, log: list[EventDict]
) -> None:
    """`dlrflow_tls_files_broken` until the files can be used; workers to come get what is served."""
    pair = authority.pair(tmp_path, "ECDSA")
    registry = CollectorRegistry()
    handed: list[Pairs] = []
    settings = TlsSettings(tls_cert_files=(pair.cert,), tls_key_files=(pair.key,))
    served = certificates(settings, registry, SystemClock(), handed.append)
    assert served is not None

    def figures() -> tuple[float | None, ...]:
        names = ("dlrflow_tls_files_broken", "dlrflow_tls_files_failures_total", "dlrflow_tls_reloads_total")
        return tuple(map(registry.get_sample_value, names))

    assert figures() == (0, 0, 0)
    pair.cert.write_bytes(b"")
    await settle(served)
    assert figures() == (1, 1, 0)
    pair.write(*authority.issue("ECDSA"))
    await settle(served)

    assert figures() == (0, 1, 1)
    assert handed == [served.served.pairs]
    assert [line["log_level"] for line in log] == ["error", "info"]


def test_files_that_nobody_could_look_at_for_long_raise_the_alarm(authority: Authority, tmp_path: Path) -> None:
    """It ends with the next look, unless the files are broken."""
    registry = CollectorRegistry()
    served = Certificates(files_of(authority.pair(tmp_path, "ECDSA"))).served
    report = CertificatesReport(registry, SystemClock(), lambda _: None)
    figures = []
    for tell in (
        report.late,
        lambda: report.looked(served),
        lambda: report.broken("why"),
        report.late,
        lambda: report.looked(served),
    ):
        tell()
        figures.append(registry.get_sample_value("dlrflow_tls_files_broken"))

    assert figures == [1, 0, 1, 1, 1]


async def test_a_key_that_everybody_may_read_gets_a_hint(
    authority: Authority, tmp_path: Path, log: list[EventDict]
) -> None:
    """At the start and with each renewal; but it is served, since some mounts cannot do better."""
    pair = authority.pair(tmp_path, "ECDSA")
    settings = TlsSettings(tls_cert_files=(pair.cert,), tls_key_files=(pair.key,))
    hints = []
    for mode in (0o644, 0o640):
        pair.key.chmod(mode)
        served = certificates(settings, CollectorRegistry(), SystemClock(), lambda _: None)
        hints.append([(line["event"], line["path"]) for line in log])
        log.clear()
    assert served is not None
    pair.write(*authority.issue("ECDSA"))
    pair.key.chmod(0o604)
    await settle(served)

    hint = ("every user of this machine may read a private key of TLS", str(pair.key))
    assert hints == [[hint], []]
    assert [line["event"] for line in log] == ["certificates loaded", hint[0]]


@pytest.mark.parametrize(
    ("address", "proxies", "warned"),
    [
        ("127.0.0.1", (), False),
        ("::1", (), False),
        ("0.0.0.0", (), True),  # noqa: S104 - that is the point
        ("::", (), True),
        ("192.0.2.7", (), True),
        ("fe80::1%eth0", (), True),
        ("0.0.0.0", ("10.0.0.0/8",), False),  # noqa: S104 - as above
    ],
)
def test_plain_http_that_others_reach_is_warned_of(
    log: list[EventDict], address: str, proxies: tuple[str, ...], *, warned: bool
) -> None:
    """Unless a trusted proxy stands in front, or nobody but this machine can connect."""
    networks = NetworkSettings.model_validate({"trusted_proxies": proxies})

    warn_of_plain_http(TlsSettings(), networks, address)

    assert bool(log) is warned


def test_tls_needs_no_such_warning(log: list[EventDict]) -> None:
    """It was set up for that."""
    settings = TlsSettings(tls_cert_files=(Path("a"),), tls_key_files=(Path("b"),))

    warn_of_plain_http(settings, NetworkSettings(), "192.0.2.7")

    assert not log
