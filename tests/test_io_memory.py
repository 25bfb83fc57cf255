"""Data in memory and streams: what is accepted, what is spooled, and that it can be read again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudedup.errors import InputError, OutputError
from gpudedup.io import abreast, open_source
from gpudedup.io.batches import TARGET_BYTES, bounded_slices, value_bytes

TEXTS = ["a b", None, "", "ü" * 10, "a b"]
TABLE = pa.table({"text": TEXTS, "id": [5, 6, 7, 8, 9]})


def source(data, columns=("text",), text_column="text", memory_bytes=1 << 30, tmp=None):
    return open_source(data, text_column=text_column, columns=list(columns), memory_bytes=memory_bytes, tmp=tmp)


def read(shard, columns=("text",), wanted=None):
    rows, found = [], []
    for batch in shard.read(list(columns), wanted):
        assert batch.columns.schema.names == list(columns)
        assert batch.damaged.tolist() == []
        rows += batch.rows.tolist()
        found += [tuple(row.values()) for row in batch.columns.to_pylist()]
    assert rows == (list(range(len(found))) if wanted is None else list(wanted))
    return found


class Stream:
    """Nothing but the PyCapsule interface, and only once."""

    def __init__(self, table):
        self.reader = table.to_reader()

    def __arrow_c_stream__(self, requested_schema=None):
        return self.reader.__arrow_c_stream__(requested_schema)


class Array:
    def __init__(self, batch):
        self.batch = batch

    def __arrow_c_array__(self, requested_schema=None):
        return self.batch.__arrow_c_array__(requested_schema)


FORMS = {
    "table": lambda table: table,
    "sliced table": lambda table: pa.concat_tables([table.slice(0, 1), table]).slice(1),
    "chunked table": lambda table: pa.concat_tables([table.slice(0, 2), table.slice(2)]),
    "batch": lambda table: table.combine_chunks().to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=2),
    "capsule stream": Stream,
    "capsule array": lambda table: Array(table.combine_chunks().to_batches()[0]),
    "dataset": pyarrow.dataset.dataset,
    "list of batches": lambda table: table.to_batches(max_chunksize=2),
    "tuple of tables": lambda table: (table.slice(0, 2), table.slice(2)),
    "generator of batches": lambda table: iter(table.to_batches(max_chunksize=1)),
    "generator of capsules": lambda table: (Stream(table.slice(row, 1)) for row in range(table.num_rows)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_arrow_data(form):
    found = source(FORMS[form](TABLE), columns=["text", "id"])
    (shard,) = found.shards
    assert shard.name == ""
    assert shard.fingerprint is None
    assert found.column_type("id") == pa.int64()
    for _ in range(2):
        assert read(shard) == [(text,) for text in TEXTS]
        assert read(shard, ["id", "text"], np.array([1, 4])) == [(6, None), (9, "a b")]
    keep = np.array([True, False, True, False, True])
    assert pa.Table.from_batches(shard.kept(keep), found.kept_schema()).to_pylist() == TABLE.filter(keep).to_pylist()
    assert found.skipped == []
    found.close()


@pytest.mark.parametrize("library", ["polars", "pandas", "duckdb"])
def test_other_libraries(library):
    module = pytest.importorskip(library)
    if library == "polars":
        data = module.DataFrame({"text": TEXTS, "id": [5, 6, 7, 8, 9]})
    elif library == "pandas":
        data = module.DataFrame({"text": TEXTS, "id": [5, 6, 7, 8, 9]})
        if not hasattr(data, "__arrow_c_stream__"):
            pytest.skip("pandas before 2.2")
    else:
        data = module.from_arrow(TABLE)
    found = source(data, columns=["text", "id"])
    (shard,) = found.shards
    for _ in range(2):
        assert read(shard) == [(text,) for text in TEXTS]
        assert read(shard, ["id"], np.array([1, 4])) == [(6,), (9,)]
    assert pa.Table.from_batches(shard.kept(np.arange(5) == 3)).to_pylist() == TABLE.slice(3, 1).to_pylist()


def test_tables_are_not_copied():
    table = pa.table({"text": ["x" * 1000] * 10_000})
    before = pa.total_allocated_bytes()
    found = source(table)
    (batch,) = found.shards[0].read(["text"])
    assert batch.columns.column(0).buffers()[2].address == table["text"].chunk(0).buffers()[2].address
    assert pa.total_allocated_bytes() - before < 100_000


def test_list_of_documents():
    found = source(["a", None, "", "\ud800x", "é"])
    assert read(found.shards[0]) == [("a",), (None,), ("",), ("\ufffdx",), ("é",)]
    assert found.column_type("text") == pa.large_string()
    mixed = source(["a", b"\xff", None, "\udfff"])
    assert read(mixed.shards[0]) == [(b"a",), (b"\xff",), (None,), ("\ufffd".encode(),)]
    assert read(source([]).shards[0]) == []
    assert read(source((), ["body"], text_column="body").shards[0], ["body"]) == []
    assert read(source([None]).shards[0]) == [(None,)]
    many = [str(number) * 20 for number in range(100_000)]
    assert [text for (text,) in read(source(many).shards[0])] == many
    with pytest.raises(InputError, match="there is no column 'id'; it has: text"):
        source(["a"], columns=["text", "id"])


def test_empty_stream_has_no_documents():
    for data in (
        iter(()),
        TABLE.slice(0, 0),
        TABLE.slice(0, 0).to_reader(),
        pa.table({"text": pa.array([], pa.string())}),
    ):
        assert read(source(data).shards[0]) == []
    assert source(iter(()), columns=["text", "id"]).column_type("id") == pa.null()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read data of type NoneType; give a path, glob, directory or URL"),
        (5, "cannot read data of type int"),
        ({"text": ["a"]}, "cannot read data of type dict"),
        (b"text", "cannot read data of type bytes"),
        (object(), "cannot read data of type object"),
        (pa.array([{"text": "a"}]), r"a struct<text: string> array is no table; give pa.table\({'text': ...}\)"),
        (pa.array(["a"]), "a string array is no table"),
        (pa.chunked_array([["a"]]), "a string array is no table"),
        (Array(pa.array(["a"])), "cannot be read as a table"),
        ([1], "item 0 of the list is of type int"),
        (["a", 5.0], "item 1 of the list is of type float"),
        (["a", TABLE], "item 0 of the data given is of type str"),
        ([TABLE, None], "item 1 of the data given is None"),
        (
            [TABLE, pa.table({"text": [1]})],
            r"batch 1 has the schema \(text: int64\), but the first has \(text: string, id",
        ),
        (iter(["a", "b"]), r"item 0 .* is of type str; .*for documents, give a list of str"),
        (np.array(["a", "b"]), "item 0 of the data given is of type str"),
        (pa.table({"body": ["a"]}), "the data given: there is no column 'text'; it has: body"),
        (pa.table({"text": [1]}), "text column 'text' has type int64"),
        (pa.table({"text": [["a"]]}), "'text' is nested"),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "2 columns are named 'text'"),
        ("", "no file matches ''"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        source(data)


def big_batches(count=40, rows=50):
    rng = np.random.default_rng(1)
    for number in range(count):
        texts = [rng.bytes(10_000).hex() for _ in range(rows)]
        yield pa.record_batch({"text": texts, "id": list(range(number * rows, (number + 1) * rows))})


def test_long_stream_is_spooled_and_deleted(tmp_path):
    before = pa.total_allocated_bytes()
    found = source(big_batches(), columns=["text", "id"], memory_bytes=64_000_000, tmp=str(tmp_path))
    assert pa.total_allocated_bytes() - before < 1_000_000, "nothing stays in memory"
    (folder,) = tmp_path.iterdir()
    shard = found.shards[0]
    expected = [row for batch in big_batches() for row in batch.to_pylist()]
    assert [{"text": text, "id": number} for text, number in read(shard, ["text", "id"])] == expected
    wanted = [0, 49, 50, 1234, 1999]
    assert read(shard, ["id"], np.array(wanted)) == [(row,) for row in wanted]
    assert max(int(value_bytes(batch.columns.column(0)).sum()) for batch in shard.read(["text"])) <= TARGET_BYTES
    keep = np.arange(2000) % 2 == 0
    assert [row for batch in shard.kept(keep) for row in batch.to_pylist()] == expected[::2]
    found.close()
    found.close()
    assert not folder.exists()


def test_spooled_dictionaries_may_change(tmp_path):
    def batches():
        for number in range(300):
            values = [f"{number}-{row % 7}" * 1000 for row in range(50)]
            yield pa.record_batch({"text": pa.array(values).dictionary_encode()})

    found = source(batches(), memory_bytes=64_000_000, tmp=str(tmp_path))
    assert list(tmp_path.iterdir())
    texts = read(found.shards[0])
    assert len(texts) == 15_000
    assert texts[1234] == (f"24-{34 % 7}" * 1000,)
    found.close()


def test_failing_stream_leaves_nothing(tmp_path):
    def batches():
        yield from big_batches()
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        source(batches(), memory_bytes=64_000_000, tmp=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="there is no column 'body'"):
        source(big_batches(), text_column="body", columns=["body"], memory_bytes=64_000_000, tmp=str(tmp_path))
    assert list(tmp_path.iterdir()) == []

    def broken():
        yield from big_batches()
        raise pa.ArrowInvalid("bad page")

    reader = pa.RecordBatchReader.from_batches(next(big_batches()).schema, broken())
    with pytest.raises(InputError, match=r"the stream of batches failed after row 2000: .*bad page"):
        source(reader, memory_bytes=64_000_000, tmp=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_spool_without_a_place(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*missing: .*No such file"):
        source(big_batches(), memory_bytes=64_000_000, tmp=str(tmp_path / "missing"))


def test_spool_of_a_killed_process_is_deleted_by_the_next(tmp_path):
    killed = "import os, sys, pyarrow as pa; from gpudedup.io.memory import Spool; "
    killed += "spool = Spool(pa.schema([]), sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)]).returncode == -9
    [left] = tmp_path.iterdir()
    assert left.name.startswith("gpudedup-spool-")
    opened = source(big_batches(), memory_bytes=64_000_000, tmp=str(tmp_path))
    assert not left.exists()
    opened.close()
    assert list(tmp_path.iterdir()) == []


def test_write_kept_is_parquet(tmp_path):
    table = TABLE.append_column("tags", pa.array([["a"], None, [], ["b", None], ["c"]]))
    table = table.replace_schema_metadata({"k": "v"})
    shard = source(table).shards[0]
    keep = np.array([True, False, False, True, True])
    size = shard.write_kept(keep, tmp_path / "kept.parquet")
    assert (tmp_path / "kept.parquet").stat().st_size == size
    kept = pq.read_table(tmp_path / "kept.parquet")
    assert kept.equals(table.filter(keep))
    assert kept.schema.metadata == table.schema.metadata
    shard.write_kept(np.zeros(5, bool), tmp_path / "kept.parquet")
    assert pq.read_table(tmp_path / "kept.parquet").num_rows == 0
    with pytest.raises(ValueError, match="keep has 4 values for 5 rows"):
        shard.write_kept(keep[:4], tmp_path / "kept.parquet")
    union = pa.UnionArray.from_sparse(pa.array([0] * 5, pa.int8()), [pa.array([1, 2, 3, 4, 5])])
    odd = source(TABLE.append_column("union", union)).shards[0]
    with pytest.raises(OutputError, match=r"cannot write .*kept.parquet: .*nion.*convert or drop"):
        odd.write_kept(keep, tmp_path / "kept.parquet")


KINDS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


def make_array(values, kind):
    """As pa.array, also for dictionaries of large_string before Arrow 22."""
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_slices_of_any_type(data):
    kind = data.draw(st.sampled_from(KINDS))
    texts = data.draw(st.lists(st.none() | st.text(max_size=40), max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    chunks = [
        make_array([None, *texts[a:b], "pad"], kind).slice(1, b - a)
        for a, b in zip([0, *cuts], [*cuts, len(texts)], strict=True)
    ]
    table = pa.table({"text": pa.chunked_array(chunks, kind), "lists": [[text] for text in texts]})
    table = table.append_column("views", pa.array([[text] for text in texts], pa.list_(pa.string_view())))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), dtype=bool)
    found = source(data.draw(st.sampled_from([table, table.to_reader()])))
    shard = found.shards[0]
    assert read(shard) == [(text,) for text in texts]
    wanted = np.flatnonzero(keep)
    assert read(shard, wanted=wanted) == [(texts[row],) for row in wanted.tolist()]
    kept = [row for batch in shard.kept(keep) for row in batch.to_pylist()]
    assert kept == [{"text": texts[row], "lists": [texts[row]], "views": [texts[row]]} for row in wanted.tolist()]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_slices_are_bounded_by_decoded_bytes(kind):
    texts = ["x" * 1000, "y", None, "z" * 5000, ""] * 100
    batch = pa.record_batch({"text": make_array(["pad", *texts], kind)}).slice(1)
    assert value_bytes(batch.column(0)).tolist() == [len(text or "") for text in texts]
    pieces = list(bounded_slices(batch, 7000))
    assert [first for first, _ in pieces] == [
        sum(piece.num_rows for _, piece in pieces[:at]) for at in range(len(pieces))
    ]
    assert [text for _, piece in pieces for text in piece.column(0).to_pylist()] == texts
    assert max(int(value_bytes(piece.column(0)).sum()) for _, piece in pieces) <= 7000


# Reading ahead


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("depth", [1, 2, 10])
def test_items_come_part_after_part(threads, depth):
    sizes = [3, 0, 1, 50, 0, 0, 7] * 5
    expected = [(part, number) for part, size in enumerate(sizes) for number in range(size)]

    def made(part, size):
        for number in range(size):
            if (part + number) % 5 == 0:
                time.sleep(0.001)
            yield part, number

    assert list(abreast((made(part, size) for part, size in enumerate(sizes)), threads, depth)) == expected
    assert list(abreast(iter(()), threads, depth)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_after_the_items_before(threads):
    def items(part):
        yield part
        if part == 2:
            raise InputError("no more")
        yield -part

    found = abreast(map(items, range(9)), threads, 1)
    assert [next(found) for _ in range(5)] == [0, 0, 1, -1, 2]
    with pytest.raises(InputError, match="no more"):
        next(found)

    def parts():
        yield iter([1, 2])
        raise InputError("no other part")

    found = abreast(parts(), threads, 1)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(InputError, match="no other part"):
        next(found)
    assert not prefetching()


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "gpudedup-prefetch"]


@pytest.mark.parametrize("threads", [1, 4])
def test_reading_ahead_is_bounded_and_stops(threads):
    made, closed = [], []

    def items(part):
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.append(part)

    found = abreast(map(items, range(100)), threads, 3)
    assert next(found) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 4 * threads  # each has three waiting and one in its hand
    assert len(prefetching()) == threads
    found.close()
    assert sorted(closed) == list(range(threads))
    assert not prefetching()
    for _ in abreast(map(items, range(100)), threads, 1):
        break
    deadline = time.monotonic() + 5
    while prefetching() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetching()


def test_what_follows_an_item_is_done_after_each():
    done = []
    assert list(abreast(iter([iter([1, 2]), iter([3])]), 1, 5, after=lambda: done.append(len(done)))) == [1, 2, 3]
    assert done == [0, 1, 2]


def test_after_fork_data_can_be_read(tmp_path):
    """A source opened before a fork has no threads and no shared file positions."""
    found = source(big_batches(), memory_bytes=64_000_000, tmp=str(tmp_path))
    expected = len(read(found.shards[0]))
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(read(found.shards[0])) == expected else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found.close()
