"""Log files under any damage: what is read was written, and whatever damage spared is read."""

from hypothesis import given
from hypothesis import strategies as st

from ingest.runtime.logfile import Damage, Frame, encode_frame, scan

SALT = 0xC0FFEE
BODIES = st.lists(st.binary(max_size=80), min_size=1, max_size=12)


def written(bodies: list[bytes]) -> list[Frame]:
    """The frames as they should come back."""
    frames = []
    start = 0
    for sequence, body in enumerate(bodies, 1):
        data = encode_frame(sequence, b"t" * 16, body, salt=SALT)
        frames.append(Frame(sequence, b"t" * 16, body, start, start + len(data)))
        start += len(data)
    return frames


def encoded(frames: list[Frame]) -> bytes:
    """The bytes of a file with these frames."""
    return b"".join(encode_frame(frame.sequence, frame.tag, frame.body, salt=SALT) for frame in frames)


@given(BODIES, st.integers(0, 200))
def test_every_frame_comes_back(bodies: list[bytes], room: int) -> None:
    """Any bodies, with any room after them."""
    frames = written(bodies)

    assert list(scan(encoded(frames) + bytes(room), salt=SALT)) == frames


@given(BODIES, st.data())
def test_damage_costs_what_it_touches_and_nothing_else(bodies: list[bytes], data: st.DataObject) -> None:
    """Overwrite any stretch with anything: the frames outside are read, those inside are not, none is invented."""
    frames = written(bodies)
    buffer = bytearray(encoded(frames))
    at = data.draw(st.integers(0, len(buffer) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=100))[: len(buffer) - at]
    before = bytes(buffer)
    buffer[at : at + len(junk)] = junk
    spared = [frame for frame in frames if buffer[frame.start : frame.end] == before[frame.start : frame.end]]

    items = list(scan(bytes(buffer), salt=SALT))

    assert [item for item in items if isinstance(item, Frame)] == spared
    for item in items:
        if isinstance(item, Damage):
            assert item.kind == ("corrupt" if any(frame.start >= item.end for frame in spared) else "torn")


@given(BODIES, st.data())
def test_a_file_cut_anywhere_keeps_its_whole_frames(bodies: list[bytes], data: st.DataObject) -> None:
    """Any length: the frames that are complete are read, the rest is torn at most."""
    frames = written(bodies)
    buffer = encoded(frames)
    end = data.draw(st.integers(0, len(buffer)))

    items = list(scan(buffer[:end], salt=SALT))

    assert [item for item in items if isinstance(item, Frame)] == [frame for frame in frames if frame.end <= end]
    assert [item.kind for item in items if isinstance(item, Damage)] in ([], ["torn"])


@given(st.binary(max_size=400))
def test_any_bytes_can_be_scanned(buffer: bytes) -> None:
    """No input makes the scan raise or go on for ever, and no bytes of others are taken for ours."""
    assert not [item for item in scan(buffer, salt=SALT) if isinstance(item, Frame)]
