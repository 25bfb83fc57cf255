"""Remote files open for reading: the same bytes as a local file, however they are asked for, from few requests."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudedup.io import files, remote
from gpudedup.io.files import LocalFile, RemoteFile
from gpudedup.io.paths import ChangedError
from gpudedup.io.remote import Remote, UnreachableError, Url
from gpudedup.store.stopping import GivenUpError, heed

DATA = np.random.default_rng(1).bytes(100_000)


@dataclass
class Storage:
    """A filesystem with one file, which counts what is asked of it."""

    data: bytes
    failures: list[BaseException] = field(default_factory=list)
    requests: list[tuple[int, int]] = field(default_factory=list)
    opened: int = 0

    def open_input_file(self, path):
        self.opened += 1
        return self

    def read_at(self, size, offset):
        self.requests.append((offset, size))
        if self.failures:
            raise self.failures.pop(0)
        return self.data[offset : offset + size]


def remote_file(storage, check=lambda: None):
    return RemoteFile(Remote(storage, "a", Url.parse("s3://KEYID:secret@bucket/a")), len(DATA), check)


@pytest.fixture
def small_pieces(monkeypatch):
    """All sizes a thousandth, so that little data has many pieces."""
    for name in ("PIECE_BYTES", "AHEAD_BYTES", "LEAST_BYTES"):
        monkeypatch.setattr(files, name, getattr(files, name) >> 10)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))


PLACES = st.integers(0, len(DATA) + 5000)
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 30_000))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), SIZES),
        st.tuples(st.just("seek"), PLACES),
        st.tuples(st.just("pread"), SIZES, PLACES),
        st.tuples(st.just("buffer"), SIZES, PLACES),
        st.tuples(st.just("expect"), st.lists(st.tuples(PLACES, PLACES), max_size=4)),
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(STEPS)
def test_any_reads_give_the_bytes_of_the_file(steps):
    with pytest.MonkeyPatch.context() as patch, io.BytesIO(DATA) as model:
        for name in ("PIECE_BYTES", "AHEAD_BYTES", "LEAST_BYTES"):
            patch.setattr(files, name, getattr(files, name) >> 10)
        with remote_file(Storage(DATA)) as file:
            for step, *arguments in steps:
                if step == "read":
                    assert file.read(*arguments) == model.read(*arguments)
                elif step == "seek":
                    assert file.seek(*arguments) == model.seek(*arguments)
                elif step == "expect":
                    file.expect(*arguments)
                else:
                    size, offset = arguments
                    assert bytes(getattr(file, step)(size, offset)) == DATA[offset : offset + size]
                assert file.tell() == model.tell()


def test_as_other_files_do(small_pieces):
    with remote_file(Storage(DATA)) as file:
        assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
        assert file.read() == DATA[-10:]
        assert file.seek(100) == 100
        assert file.seek(5, io.SEEK_CUR) == 105
        buffer = bytearray(50)
        assert file.readinto(buffer) == 50
        assert bytes(buffer) == DATA[105:155]
        assert file.arrow().read() == DATA[155:]
        assert file.readable()
        assert file.seekable()


def test_a_local_file_has_the_same_methods(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(DATA)
    with LocalFile(str(path)) as file:
        file.expect([(0, 5)])
        assert file.pread(100, 50) == DATA[50:150]
        assert file.pread(100, len(DATA) - 10) == DATA[-10:]
        assert bytes(file.buffer(100, 50)) == DATA[50:150]
        assert bytes(file.buffer(100, len(DATA) - 10)) == DATA[-10:]
        assert file.read(10) == DATA[:10]
        assert file.arrow().read() == DATA


def test_in_order_every_byte_is_asked_for_once(small_pieces):
    storage = Storage(DATA)
    with remote_file(storage) as file:
        while file.read(100):
            pass
    at = 0
    for offset, size in sorted(storage.requests):
        assert offset == at
        at += size
    assert at == len(DATA)
    assert len(storage.requests) < 60  # of the 1,000 reads
    assert max(size for _, size in storage.requests) <= files.PIECE_BYTES


def test_elsewhere_no_more_than_what_is_read(small_pieces):
    storage = Storage(DATA)
    with remote_file(storage) as file:
        for offset in range(90_000, 0, -10_000):
            file.pread(8, offset)
            file.pread(20, offset + 8)
    assert storage.requests == [(offset, files.LEAST_BYTES) for offset in range(90_000, 0, -10_000)]


def test_what_is_expected_is_held(small_pieces):
    """As for a column chunk: from page to page first, then all of it."""
    storage = Storage(DATA)
    with remote_file(storage) as file:
        file.expect([(50_000, 70_000), (10_000, 30_000)])
        for start in (10_000, 50_000):
            for offset in range(start, start + 20_000, 1000):
                file.pread(10, offset)
        for start in (10_000, 50_000):
            for offset in range(start, start + 20_000, 500):
                assert file.pread(500, offset) == DATA[offset : offset + 500]
    assert sum(size for _, size in storage.requests) == 40_000


def test_reading_ahead_is_bounded(small_pieces):
    """However long the reader takes."""
    storage = Storage(DATA)
    with remote_file(storage) as file:
        for read in range(100, 50_000, 100):
            file.read(100)
            if read % 10_000 == 0:
                time.sleep(0.1)
                assert 0 < sum(size for _, size in storage.requests) - read <= files.AHEAD_BYTES


@pytest.mark.parametrize("error", [OSError("reset"), ConnectionResetError(104, "reset"), TimeoutError(), KeyError("x")])
def test_failures_that_pass_are_not_seen(error, small_pieces, no_pauses):
    storage = Storage(DATA, [error, error, error])
    with remote_file(storage) as file:
        assert file.read() == DATA
    assert storage.opened > 1  # what failed may be broken


def test_failures_that_last_name_the_url_and_the_cause(no_pauses):
    storage = Storage(DATA, [OSError("no route\nto KEYID:secret@host")] * 100)
    with remote_file(storage) as file, pytest.raises(UnreachableError) as caught:
        file.read(10)
    assert str(caught.value) == (
        "cannot read s3://bucket/a: no route to ***:***@host; check the address and the network, and run again"
    )
    assert caught.value.__cause__ is None
    assert caught.value.exit_code == 3
    assert len(storage.requests) == 4


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError("AWS Error ACCESS_DENIED during GetObject")])
def test_refusals_are_not_tried_again(error):
    storage = Storage(DATA, [error])
    with remote_file(storage) as file, pytest.raises(UnreachableError, match="check the credentials"):
        file.read(10)
    assert len(storage.requests) == 1


def test_a_file_that_is_shorter_now(no_pauses):
    def check():
        raise ChangedError("it changed")

    with remote_file(Storage(DATA[:50]), check) as file, pytest.raises(ChangedError, match="it changed"):
        file.read(100)


def test_no_new_try_after_a_while(monkeypatch):
    monkeypatch.setattr(remote, "TRYING_SECONDS", 0)
    storage = Storage(DATA, [OSError("late")] * 10)
    with remote_file(storage) as file, pytest.raises(UnreachableError, match="late"):
        file.read(10)
    assert len(storage.requests) == 1


def test_a_stop_does_not_wait_for_a_storage_that_hangs(small_pieces):
    answer = threading.Event()

    class Hanging(Storage):
        def read_at(self, size, offset):
            answer.wait(30)
            return super().read_at(size, offset)

    stop, outcome = threading.Event(), []

    def work():
        heed(stop)
        file = remote_file(Hanging(DATA))
        try:
            file.read()
        except GivenUpError:
            file.close()
            outcome.append("given up")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    stop.set()
    thread.join(5)
    answer.set()
    assert outcome == ["given up"]


def test_ahead_gives_results_and_errors_in_order():
    def action(item):
        time.sleep(0.001 * (item % 7))
        if item % 10 == 3:
            raise ValueError(f"item {item}")
        return item * item

    found = []
    for result in files.ahead(action, range(50)):
        try:
            found.append(result())
        except ValueError as error:
            found.append(str(error))
    assert found == [f"item {item}" if item % 10 == 3 else item * item for item in range(50)]


def test_ahead_is_bounded_by_count_and_bytes():
    """What was begun, and not given out yet."""
    for size, most in ((0, files.FILES_AHEAD), (files.TARGET_BYTES // 3, 3), (files.TARGET_BYTES + 1, 0)):
        begun = []
        for handed, result in enumerate(files.ahead(begun.append, range(60), lambda item, size=size: size)):
            time.sleep(0.002)
            assert len(begun) - handed <= most
            result()
        assert sorted(begun) == list(range(60))


def test_ahead_begins_nothing_more_when_it_is_left():
    begun = []
    for result in files.ahead(begun.append, range(1000)):
        result()
        break
    time.sleep(0.1)
    assert len(begun) <= files.FILES_AHEAD + 1
