"""nvtext of libcudf, through cudf: Series.str.minhash over lists of words; buckets and components by cudf and CuPy.

Written by the public documentation of cudf (str.minhash of a list column hashes runs of ``width`` words). It needs an
NVIDIA GPU. Bands of equal lanes are joined, so candidates are taken as copies; the first of a component stays.
"""

from __future__ import annotations

import cudf
import cupy
import nvtext_minhash
import peer

SEPARATOR = r"[^\w]|_"
SINGLE = f"([{peer.SINGLES}])"


def sketch(texts: cudf.Series, a: cudf.Series, b: cudf.Series) -> cupy.ndarray:
    """uint32[documents, NUM_PERM]."""
    words = texts.str.lower().str.replace_with_backrefs(SINGLE, r" \1 ").str.replace(SEPARATOR, " ", regex=True)
    lists = words.str.split()
    made = lists.str.minhash(seed=nvtext_minhash.SEED, a=a, b=b, width=peer.SHINGLE)
    return made.list.leaves.values.reshape(-1, peer.NUM_PERM)


def components(lanes: cupy.ndarray) -> cupy.ndarray:
    """Of each document the first that a chain of equal bands joins it to."""
    keys = []
    for band in range(peer.BANDS):
        columns = lanes[:, band * peer.ROWS : (band + 1) * peer.ROWS]
        frame = cudf.DataFrame({str(row): columns[:, row] for row in range(peer.ROWS)})
        keys.append(frame.hash_values(method="xxhash64"))
    label = cupy.arange(len(lanes))
    while True:
        before = label
        for key in keys:
            frame = cudf.DataFrame({"key": key, "label": cudf.Series(label)})
            label = cupy.minimum(label, frame.groupby("key")["label"].transform("min").values)
        label = label[label]
        if bool((label == before).all()):
            return label


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    a, b = map(cudf.Series, nvtext_minhash.permutations(peer.NUM_PERM))
    ids, lanes = [], []
    with peer.Clock(seconds, "read_sign"):
        for file, group in peer.row_groups(files):
            table = cudf.read_parquet(file, columns=["id", "text"], row_groups=[[group]])
            ids.append(table["id"].values)
            lanes.append(sketch(table["text"], a, b))
    with peer.Clock(seconds, "match"):
        label = components(cupy.concatenate(lanes))
        kept = cupy.concatenate(ids)[label == cupy.arange(len(label))]
    return kept.tolist(), f"{peer.BANDS} bands of {peer.ROWS}, one GPU, not checked, components"


if __name__ == "__main__":
    peer.main(run)
