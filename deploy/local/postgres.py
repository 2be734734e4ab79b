"""PostgreSQL on this machine: a cluster of its own on a free port, from the installed binaries or from Maven.

    with LocalPostgres() as postgres:
        print(postgres.dsn)

PostgreSQL refuses to run as root; started by root it runs as `postgres`, else as `nobody`.
"""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import asyncpg

from deploy.local import cache
from deploy.local.processes import LocalServiceError, PortLease, Service, answer, await_ready, port_open

SUPERUSER: Final = "dlrflow"
DATABASE: Final = "postgres"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
PROBE_TIMEOUT_S: Final = 5.0
DISTRIBUTION: Final = Path("/usr/lib/postgresql")
OPTIONS: Final = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "shared_buffers=32MB",
    "max_connections=50",
)
FORGETFUL: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
"""For data that is thrown away anyway: a crash of the machine may lose it, one of the server does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSecurity:
    """What a server needs to speak TLS, and to know who comes.

    Attributes:
        cert_file, key_file: of the server (PEM).
        ca_file: who certifies clients.
        by_certificate: roles that show a certificate; all others but the superuser know a password (SCRAM).
    """

    cert_file: Path
    key_file: Path
    ca_file: Path
    by_certificate: Sequence[str]

    def install(self, data: Path, user: pwd.struct_passwd | None) -> list[str]:
        """Put it where the server finds it, and return the settings that say so."""
        settings = ["ssl=on", "password_encryption=scram-sha-256"]
        for setting, file in (("cert", self.cert_file), ("key", self.key_file), ("ca", self.ca_file)):
            place = data / f"server-{setting}.pem"
            place.write_bytes(file.read_bytes())
            place.chmod(0o600)
            if user is not None:
                os.chown(place, user.pw_uid, user.pw_gid)
            settings.append(f"ssl_{setting}_file={place}")
        rules = [f"host all {SUPERUSER} 127.0.0.1/32 trust"]
        rules += [f"hostssl all {role} 127.0.0.1/32 cert" for role in self.by_certificate]
        rules.append("hostssl all all 127.0.0.1/32 scram-sha-256")
        (data / "pg_hba.conf").write_text("".join(f"{rule}\n" for rule in rules))
        return settings


class LocalPostgres:
    """A PostgreSQL server; all methods block until what they say is true."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        port: int | None = None,
        binaries: Path | None = None,
        detached: bool = False,
        security: ServerSecurity | None = None,
    ) -> None:
        """Describe it; nothing happens before `start`.

        Args:
            folder: where data and log are kept and found again; default is a temporary one, removed by `stop`.
            port: default is a free one below 32768.
            binaries: folder with `postgres` and `initdb`; default is what `installed_binaries` finds, else from Maven.
            detached: the server outlives this process; needs a folder. `stop_detached` ends it.
            security: TLS, and passwords or certificates for everybody but the superuser.
        """
        if detached and folder is None:
            raise LocalServiceError("a detached PostgreSQL needs a folder to be found again")
        self._own_folder = folder is None
        self._folder = folder
        self._wanted_port = port
        self._wanted_binaries = binaries
        self._detached = detached
        self._security = security
        self._lease: PortLease | None = None
        self._service: Service | None = None
        self._binaries: Path | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where data and log are."""
        if self._folder is None:
            raise LocalServiceError("PostgreSQL has not been started")
        return self._folder

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._lease is None:
            raise LocalServiceError("PostgreSQL has not been started")
        return self._lease.port

    @property
    def dsn(self) -> str:
        """What clients are given."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def log(self) -> Path:
        """The file with the server's output."""
        return self.folder / "postgres.log"

    def start(self) -> str:
        """Make the cluster if the folder has none, start the server, wait until it answers a query, and return `dsn`.

        Raises:
            LocalServiceError: no binaries to be had, a wanted port is taken, or the server ends or stays silent.
        """
        binaries = self._wanted_binaries or installed_binaries() or embedded_binaries()
        user = unprivileged_user()
        if self._own_folder:
            self._folder = Path(tempfile.mkdtemp(prefix="dlrflow-postgres-"))
        try:
            wanted = self._wanted_port
            self._lease = PortLease.any() if wanted is None else PortLease.wanted(wanted, "PostgreSQL")
            self._prepare_folder(user)
            self._binaries = reachable(binaries, user, self.folder)
            self._initialise(user)
            self._launch(user)
        except BaseException:
            self.stop()
            raise
        return self.dsn

    def stop(self) -> None:
        """End the server and, if it is a temporary one, remove the folder; twice is harmless."""
        if self._service is not None:
            self._service.send(signal.SIGCONT)
            # SIGINT is the fast shutdown: it does not wait for clients. Data that is thrown away needs none at all.
            self._service.stop(signal.SIGQUIT if self._own_folder else signal.SIGINT, STOP_TIMEOUT_S)
        if self._lease is not None:
            self._lease.release()
        if self._own_folder and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def running(self) -> bool:
        """Whether the server's process exists; a frozen one does."""
        return self._service is not None and self._service.running()

    @property
    def pid(self) -> int:
        """The process id of the server that was started."""
        return self._process().pid

    def kill(self) -> None:
        """End the server with SIGKILL; its data stays."""
        self._process().kill()

    def freeze(self) -> None:
        """Stop the server where it stands (SIGSTOP): it accepts no new connection; existing ones go on being served."""
        self._process().freeze()

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._process().thaw()

    def restart(self) -> None:
        """Start a server that has ended on its old port and data, and wait until it answers."""
        if self.running():
            raise LocalServiceError("PostgreSQL still runs")
        self._launch(unprivileged_user())

    def heal(self) -> None:
        """Bring it back if it was killed or frozen."""
        if self.running():
            self.thaw()
        else:
            self.restart()

    def _process(self) -> Service:
        if self._service is None:
            raise LocalServiceError("PostgreSQL has not been started")
        return self._service

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare_folder(self, user: pwd.struct_passwd | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if user is None:
            return
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        barred = [place for place in self.folder.resolve().parents if not _enterable(place, user)]
        if barred:
            raise LocalServiceError(f"PostgreSQL runs as {user.pw_name}, who may not enter {barred[-1]}")

    def _initialise(self, user: pwd.struct_passwd | None) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        command = [str(self._program("initdb")), "--pgdata", str(self._data), "--username", SUPERUSER, "--auth=trust"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=_environment(),
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else (),
        )
        if done.returncode != 0:
            raise LocalServiceError(f"initdb could not make {self._data}: {done.stderr.strip()}")

    def _launch(self, user: pwd.struct_passwd | None) -> None:
        settings = [f"port={self.port}", *OPTIONS, *(FORGETFUL if self._own_folder else ())]
        if self._security is not None:
            settings += self._security.install(self._data, user)
        command = [str(self._program("postgres")), "-D", str(self._data)]
        for setting in settings:
            command += ["-c", setting]
        self._service = Service.start(
            command,
            folder=self.folder,
            log=self.log,
            environment=_environment(),
            user=None if user is None else (user.pw_uid, user.pw_gid),
            detached=self._detached,
            remove=self.folder if self._own_folder else None,
        )
        if self._detached:
            self._service.remember(self.folder / "pid")
        await_ready(self._service, self._answers, name="PostgreSQL", log=self.log, timeout_s=START_TIMEOUT_S)

    def _program(self, name: str) -> Path:
        if self._binaries is None:
            raise LocalServiceError("PostgreSQL has not been started")
        return self._binaries / name

    def _answers(self) -> bool:
        if not port_open(self.port):
            return False

        async def ask() -> bool:
            connection = await asyncpg.connect(self.dsn, timeout=PROBE_TIMEOUT_S)
            try:
                return bool(await connection.fetchval("select true", timeout=PROBE_TIMEOUT_S))
            finally:
                await connection.close(timeout=PROBE_TIMEOUT_S)

        try:
            return answer(ask)
        except (OSError, asyncpg.PostgresError):
            return False


def stop_detached(folder: Path) -> bool:
    """Stop the server that a detached `LocalPostgres` left running in that folder; False when there was none."""
    service = Service.recall(folder / "pid")
    if service is not None:
        service.stop(signal.SIGINT, STOP_TIMEOUT_S)
    (folder / "pid").unlink(missing_ok=True)
    return service is not None


def installed_binaries() -> Path | None:
    """Find `postgres` and `initdb` side by side: on the PATH, else the newest of the distribution's folder."""
    on_path = shutil.which("postgres")
    candidates = [] if on_path is None else [Path(on_path).resolve().parent]
    versions = (folder for folder in DISTRIBUTION.glob("*/bin") if folder.parent.name.isdigit())
    candidates += sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)
    return next((folder for folder in candidates if all((folder / p).exists() for p in ("postgres", "initdb"))), None)


def embedded_binaries() -> Path:
    """Return the binaries from Maven, fetched and unpacked if needed.

    Raises:
        LocalServiceError: Maven is missing or fails, or this is no x86-64 machine.
    """
    if platform.machine() != "x86_64":
        raise LocalServiceError("PostgreSQL from Maven is for x86-64 only: install `postgres` on this machine")
    return cache.fetched("postgres", _unpack) / "bin"


def _unpack(folder: Path) -> None:
    """Unpack the one .txz inside the one jar."""
    (jar,) = folder.glob("*.jar")
    with zipfile.ZipFile(jar) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".txz"))
        with archive.open(name) as packed, tarfile.open(fileobj=packed, mode="r:xz") as tree:
            tree.extractall(folder, filter="tar")
    jar.unlink()


def unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user to run as: None (ourselves) unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LocalServiceError("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def reachable(binaries: Path, user: pwd.struct_passwd | None, folder: Path) -> Path:
    """Return the binaries, or a copy inside `folder` where that user may not enter the way to them.

    A checkout below /root is such a place; the user to run as cannot see the cache in it.
    """
    if user is None or all(_enterable(place, user) for place in (binaries, *binaries.parents)):
        return binaries
    copy = folder / "postgres"
    if not copy.exists():
        shutil.copytree(binaries.parent, copy, symlinks=True)
    return copy / binaries.name


def _enterable(place: Path, user: pwd.struct_passwd) -> bool:
    status = place.stat()
    if status.st_uid == user.pw_uid:
        return bool(status.st_mode & 0o100)
    return bool(status.st_mode & (0o010 if status.st_gid == user.pw_gid else 0o001))


def _environment() -> dict[str, str]:
    """Return our environment without what would steer the server (PGDATA, PGPORT, ...) and with one language."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
