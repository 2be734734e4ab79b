"""The keys file: which access keys may sign, and their secrets (contract.md section 2, docs/protocol.md section 4).

Two pairs may be active at once and change while the receiver runs, so the file is looked at again and again (`.looks`).
A file that cannot be used changes nothing; it is counted, and an alarm stands until it can be used again.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from ingest.receiver.looks import Followed, NotNowError, read_at_most
from ingest.runtime.clock import Clock
from ingest.runtime.errors import UsageError

FILE_BYTES_MAX: Final = 1 << 20
ACCESS_KEY_CHARS_MAX: Final = 128

SETTING: Final = "DLR_AUTH_KEYS_FILE"


class KeysFileError(Exception):
    """The file cannot be used. The text says why and quotes nothing of it."""


class Keys:
    """Access keys and their secrets; nothing of a secret shows when it is printed."""

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._secrets = dict(secrets)

    def secret_of(self, access_key: str) -> bytes | None:
        """The secret of an access key, None if there is no such key."""
        return self._secrets.get(access_key)

    def names(self) -> frozenset[str]:
        """The access keys, which are no secrets."""
        return frozenset(self._secrets)

    def changes(self, later: "Keys") -> Mapping[str, list[str]]:
        """The access keys that came, went or have another secret in `later`."""
        ours, theirs = self.names(), later.names()
        return {
            "added": sorted(theirs - ours),
            "removed": sorted(ours - theirs),
            "changed": sorted(name for name in ours & theirs if self._secrets[name] != later.secret_of(name)),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and self._secrets == other._secrets

    def __hash__(self) -> int:
        return hash(self.names())

    def __repr__(self) -> str:
        return f"Keys({len(self._secrets)} access keys)"


def parse_keys(data: bytes) -> Keys:
    """The keys that the content of a file holds. Blanks around names and secrets do not count.

    Raises:
        KeysFileError: it is not a JSON object of texts, or empty, or names a key twice.
    """
    if len(data) > FILE_BYTES_MAX:
        raise KeysFileError(f"is larger than {FILE_BYTES_MAX} bytes")
    if not data.strip():
        raise KeysFileError("is empty")
    try:
        pairs = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        # The error itself would quote the file.
        raise KeysFileError("is not JSON in UTF-8") from None
    if not isinstance(pairs, _Pairs):
        raise KeysFileError("is not a JSON object, access key to secret key")
    secrets: dict[str, bytes] = {}
    for name, value in pairs:
        access_key, secret = _pair(name, value)
        if access_key in secrets:
            raise KeysFileError(f"names the access key {access_key} twice")
        secrets[access_key] = secret
    if not secrets:
        raise KeysFileError("holds no access key")
    return Keys(secrets)


def read_file(path: Path) -> bytes:
    """The content of a keys file, at most one byte more than it may have.

    Raises:
        KeysFileError: it cannot be read.
        NotNowError: the machine cannot open it now.
    """
    try:
        return read_at_most(path, FILE_BYTES_MAX)
    except OSError as error:
        raise KeysFileError(f"cannot be read: {error.strerror}") from None


def keys_at_start(path: Path) -> Keys:
    """The keys of a file that must be usable.

    Raises:
        UsageError: it is not; one line that names it.
    """
    try:
        return parse_keys(read_file(path))
    except KeysFileError as error:
        raise UsageError(f"the keys file {path} ({SETTING}) {error}") from None
    except NotNowError as error:
        raise UsageError(f"the keys file {path} ({SETTING}) cannot be read: {error}") from None


class KeysWatcher(Protocol):
    """Is told what becomes of a keys file."""

    def changed(self, before: Keys, now: Keys) -> None:
        """Other keys count from now on."""
        ...

    def broken(self, why: str) -> None:
        """The file cannot be used as it is now; once per content."""
        ...

    def mended(self) -> None:
        """It can be used again."""
        ...

    def looked(self) -> None:
        """A look has succeeded."""
        ...

    def late(self) -> None:
        """No look has succeeded for long; the keys may be out of date. Until `looked`."""
        ...


class KeysFile:
    """The keys of one file, kept up to date by `follow`.

    Args:
        path: of the file.
        keys: that count until the file says others.
        watcher: is told of changes; None where another process tells.
    """

    def __init__(self, path: Path, keys: Keys, watcher: KeysWatcher | None = None) -> None:
        self._path = path
        self._keys = keys
        self._watcher = watcher
        self._seen: bytes | str | None = None
        self._is_broken = False
        self._followed = Followed[bytes | str](SETTING, read=self._look, take=self._take)

    @property
    def keys(self) -> Keys:
        """Those that count now."""
        return self._keys

    def secret_of(self, access_key: str) -> bytes | None:
        """The secret of an access key now, None if there is no such key."""
        return self._keys.secret_of(access_key)

    async def follow(self, clock: Clock, on_look: Callable[[], None] = lambda: None) -> NoReturn:
        """Look at the file again and again; `on_look` is called after each look that succeeded."""

        def looked() -> None:
            if self._watcher is not None:
                self._watcher.looked()
            on_look()

        def late() -> None:
            if self._watcher is not None:
                self._watcher.late()

        await self._followed.follow(clock, on_look=looked, on_late=late)

    def take(self, seen: bytes | str) -> None:
        """Take over what the file holds now: its content, or why it cannot be read."""
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys = _keys_of(seen)
        except KeysFileError as error:
            self._is_broken = True
            if self._watcher is not None:
                self._watcher.broken(str(error))
            return
        before, self._keys = self._keys, keys
        if self._is_broken:
            self._is_broken = False
            if self._watcher is not None:
                self._watcher.mended()
        if keys != before and self._watcher is not None:
            self._watcher.changed(before, keys)

    async def _take(self, seen: bytes | str) -> None:
        self.take(seen)

    def _look(self) -> bytes | str:
        try:
            return read_file(self._path)
        except KeysFileError as error:
            return str(error)


class _Pairs(list[tuple[str, Any]]):
    """The members of a JSON object, repeats included."""


def _keys_of(seen: bytes | str) -> Keys:
    if isinstance(seen, str):
        raise KeysFileError(seen)
    return parse_keys(seen)


def _pair(name: str, value: object) -> tuple[str, bytes]:
    """One access key and its secret, as one member of the object names them."""
    access_key = name.strip()
    if not _is_access_key(access_key):
        raise KeysFileError("names an access key that is empty, too long, or not plain ASCII without blank and comma")
    if not isinstance(value, str) or not (secret := value.strip()):
        raise KeysFileError(f"has no secret for the access key {access_key}: a text that is not empty is needed")
    try:
        return access_key, secret.encode()
    except UnicodeEncodeError:
        raise KeysFileError(f"has a secret for the access key {access_key} that is not Unicode text") from None


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError("no JSON")


def _is_access_key(text: str) -> bool:
    return 0 < len(text) <= ACCESS_KEY_CHARS_MAX and all("!" <= char <= "~" and char != "," for char in text)
