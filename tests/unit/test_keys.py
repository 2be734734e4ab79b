"""The keys file: what it may hold, and how a change of it comes to count."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingest.receiver import keys as module
from ingest.receiver.keys import Keys, KeysFile, KeysFileError, keys_at_start, parse_keys
from ingest.receiver.looks import LOOK_EVERY_S
from ingest.runtime.errors import UsageError

FIRST, SECOND = '{"ak1":"sk1"}', '{"ak1":"sk1","ak2":"sk2"}'


def test_a_file_maps_access_keys_to_secrets() -> None:
    """Blanks around them do not count: a secret that was read from a file often ends with a newline."""
    keys = parse_keys('\ufeff{"ak1": " sk 1\\n", " ak2\\t": "s\u00fc\u00df"}\n'.encode())

    assert keys.secret_of("ak1") == b"sk 1"
    assert keys.secret_of("ak2") == "s\u00fc\u00df".encode()
    assert keys.secret_of("ak3") is None
    assert keys.names() == {"ak1", "ak2"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{}", "holds no access key"),
        (b'{"ak":"hunter2"', "is not JSON in UTF-8"),
        (b'{"ak":"hunter2"} x', "is not JSON in UTF-8"),
        (b'{"ak":"hunter2\xff"}', "is not JSON in UTF-8"),
        (b'{"ak":NaN}', "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON in UTF-8"),
        (b'["ak","hunter2"]', "is not a JSON object, access key to secret key"),
        (b'"hunter2"', "is not a JSON object, access key to secret key"),
        (b'{"ak":""}', "has no secret for the access key ak"),
        (b'{"ak":" \\n"}', "has no secret for the access key ak"),
        (b'{"ak":1}', "has no secret for the access key ak"),
        (b'{"ak":null}', "has no secret for the access key ak"),
        (b'{"ak":{"x":"hunter2"}}', "has no secret for the access key ak"),
        (b'{"":"hunter2"}', "names an access key that is empty"),
        (b'{"a k":"hunter2"}', "names an access key that is empty"),
        (b'{"a,k":"hunter2"}', "names an access key that is empty"),
        (b'{"' + b"k" * 129 + b'":"hunter2"}', "names an access key that is empty, too long"),
        (b'{"ak":"hunter2","ak":"hunter3"}', "names the access key ak twice"),
        (b'{"ak":"hunter2","ak ":"hunter3"}', "names the access key ak twice"),
        (b'{"ak":"\\ud800"}', "has a secret for the access key ak that is not Unicode text"),
        (b" " * ((1 << 20) + 1), "is larger than"),
    ],
)
def test_other_content_is_refused_without_quoting_a_secret(data: bytes, words: str) -> None:
    """The error says what is wrong, and never what stands there."""
    with pytest.raises(KeysFileError) as caught:
        parse_keys(data)

    assert words in str(caught.value)
    assert "hunter" not in str(caught.value)
    assert "hunter" not in repr(caught.value.__cause__)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"nonsense"])
def test_a_file_that_cannot_be_used_at_the_start_is_a_mistake(tmp_path: Path, content: bytes | None) -> None:
    """One line that names the file and the setting."""
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UsageError) as caught:
        keys_at_start(path)

    assert f"the keys file {path} (DLR_AUTH_KEYS_FILE)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_keys_file(tmp_path: Path) -> None:
    """Named by mistake: the line says so."""
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        keys_at_start(tmp_path)


def test_secrets_do_not_show_when_keys_are_printed() -> None:
    """In a traceback, a log or a debugger."""
    keys = parse_keys(b'{"ak":"hunter2"}')
    file = KeysFile(Path("keys.json"), keys)

    assert "hunter2" not in f"{keys!r} {keys} {file!r} {[keys]}"


@dataclass
class Told:
    """What a watcher was told, and an event for each look."""

    said: list[str] = field(default_factory=list)
    looks: int = 0

    def changed(self, before: Keys, now: Keys) -> None:
        """Other keys."""
        changes = before.changes(now)
        self.said.append(f"added {changes['added']} removed {changes['removed']} changed {changes['changed']}")

    def broken(self, why: str) -> None:
        """Unusable."""
        self.said.append(f"broken: {why}")

    def mended(self) -> None:
        """Usable again."""
        self.said.append("mended")

    def looked(self) -> None:
        """A look has succeeded."""
        self.looks += 1

    def late(self) -> None:
        """None has for long."""
        self.said.append("late")


@dataclass
class Looks:
    """A clock that lets the file be looked at whenever the test says so."""

    asked: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    done: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    slept: list[float] = field(default_factory=list)

    def wall_ms(self) -> int:
        """No time is asked for."""
        raise NotImplementedError

    def monotonic(self) -> float:
        """No time is asked for."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """Wait for the test."""
        self.slept.append(seconds)
        self.done.put_nowait(None)
        await self.asked.get()

    async def look(self) -> None:
        """Have the file looked at until what it holds counts: twice."""
        for _ in range(2):
            await self.look_once()

    async def look_once(self) -> None:
        """Have the file looked at once more."""
        self.asked.put_nowait(None)
        await asyncio.wait_for(self.done.get(), 10)


Follow = Callable[[Path], Awaitable[tuple[KeysFile, Told, Looks]]]


@pytest.fixture
async def follow() -> object:
    """Follows a file, looking when the test says so."""
    tasks: list[asyncio.Task[None]] = []

    async def begin(path: Path) -> tuple[KeysFile, Told, Looks]:
        told, looks = Told(), Looks()
        file = KeysFile(path, keys_at_start(path), told)
        tasks.append(asyncio.create_task(file.follow(looks)))
        await asyncio.wait_for(looks.done.get(), 10)
        return file, told, looks

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_change_counts_once_two_looks_have_found_it(tmp_path: Path, follow: Follow) -> None:
    """Keys that come, go, or get another secret; and a look that finds nothing new says nothing."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    file, told, looks = await follow(path)

    await looks.look()
    path.write_text(SECOND)
    await looks.look()
    await looks.look()
    assert file.secret_of("ak2") == b"sk2"
    path.write_text('{"ak2":"other"}')
    await looks.look()

    assert (file.secret_of("ak1"), file.secret_of("ak2")) == (None, b"other")
    assert told.said == [
        "added ['ak2'] removed [] changed []",
        "added [] removed ['ak1'] changed ['ak2']",
    ]
    assert set(looks.slept) == {LOOK_EVERY_S}
    assert LOOK_EVERY_S * 3 < 5


async def test_a_file_that_breaks_keeps_the_keys_and_is_told_once(tmp_path: Path, follow: Follow) -> None:
    """Broken, empty, gone, not to be read; each change of it once, and its end."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    file, told, looks = await follow(path)
    before = file.keys

    for content in ("{", "", "{}", '{"ak1":""}'):
        path.write_text(content)
        await looks.look()
        await looks.look()
        assert file.keys is before
    path.unlink()
    await looks.look()
    await looks.look()
    assert file.keys is before
    path.write_text(SECOND)
    await looks.look()

    assert [said.partition(":")[0] for said in told.said] == [
        *(["broken"] * 5),
        "mended",
        "added ['ak2'] removed [] changed []",
    ]
    assert "cannot be read" in told.said[4]
    assert file.secret_of("ak2") == b"sk2"


async def test_a_file_that_is_whole_again_as_before_ends_the_alarm(tmp_path: Path, follow: Follow) -> None:
    """Though no key has changed."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    _, told, looks = await follow(path)
    for content in ("{", FIRST, "{", FIRST, SECOND):
        path.write_text(content)
        await looks.look()

    assert told.said == [
        *(["broken: is not JSON in UTF-8", "mended"] * 2),
        "added ['ak2'] removed [] changed []",
    ]


async def test_a_replacement_within_one_tick_is_seen(tmp_path: Path, follow: Follow) -> None:
    """Same size and same times: the content decides."""
    path, other = tmp_path / "keys.json", tmp_path / "other.json"
    path.write_text(FIRST)
    times = path.stat()
    file, _, looks = await follow(path)

    other.write_text(FIRST.replace("sk1", "sk9"))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    await looks.look()

    assert file.secret_of("ak1") == b"sk9"


async def test_a_link_that_is_turned_over_is_followed(tmp_path: Path, follow: Follow) -> None:
    """As Kubernetes changes a mounted secret: the name stays, a folder behind it is exchanged."""
    for name, content in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.json").write_text(content)
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "keys.json").symlink_to("data/keys.json")
    file, _, looks = await follow(tmp_path / "keys.json")

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(tmp_path / "data")
    await looks.look()

    assert file.secret_of("ak2") == b"sk2"


async def test_looking_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that hangs is waited for in a thread."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    file = KeysFile(path, keys_at_start(path))
    loop = asyncio.get_running_loop()
    looking = asyncio.Event()
    threads: list[None] = []

    def hanging(_path: Path) -> bytes:
        threads.append(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10))
        loop.call_soon_threadsafe(looking.set)
        return SECOND.encode()

    monkeypatch.setattr(module, "read_file", hanging)
    looks, looked = Looks(), asyncio.Event()
    following = asyncio.create_task(file.follow(looks, looked.set))
    await asyncio.wait_for(looks.done.get(), 10)
    await asyncio.wait_for(looking.wait(), 10)
    assert not looked.is_set()
    await looks.look_once()
    await asyncio.wait_for(looked.wait(), 10)
    following.cancel()

    assert threads == [None, None]
    assert file.secret_of("ak2") == b"sk2"


async def test_a_file_between_two_states_raises_no_alarm(tmp_path: Path, follow: Follow) -> None:
    """An editor empties it and writes it anew: what one look alone has found does not count."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    file, told, looks = await follow(path)

    for content in ("", SECOND):
        path.write_text(content)
        await looks.look_once()
    assert (file.secret_of("ak2"), told.said) == (None, [])
    await looks.look_once()

    assert file.secret_of("ak2") == b"sk2"
    assert told.said == ["added ['ak2'] removed [] changed []"]


async def test_a_machine_without_descriptors_is_no_broken_file(
    tmp_path: Path, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look tries again; nobody is told that the file is to blame."""
    path = tmp_path / "keys.json"
    path.write_text(FIRST)
    file, told, looks = await follow(path)
    await looks.look_once()
    before = told.looks
    path.write_text(SECOND)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_descriptor)
        await looks.look()
        assert (told.said, told.looks) == ([], before)
        with pytest.raises(UsageError, match="cannot be read: Too many open files"):
            keys_at_start(path)
    await looks.look()

    assert file.secret_of("ak2") == b"sk2"


def no_descriptor(*_args: object) -> int:
    """As `os.open` fails when a process has too many."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
