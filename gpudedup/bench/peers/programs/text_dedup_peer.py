"""text-dedup: its command text_dedup.minhash on all cores; candidates become components, nothing is checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import peer


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as work:
        os.environ.update(HF_HOME=f"{work}/hub", HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
        # Its loader takes one value for data_files, so the files lie in one folder under one pattern.
        os.mkdir(f"{work}/in")
        for number, file in enumerate(files):
            os.symlink(file, f"{work}/in/part-{number:05}.parquet")
        command = [sys.executable, "-m", "text_dedup.minhash", "--path", "parquet", "--split", "train"]
        command += ["--data_files", f"{work}/in/*.parquet", "--cache_dir", f"{work}/cache", "--output", f"{work}/out"]
        command += ["--column", "text", "--ngram", str(peer.SHINGLE), "--min_length", "1"]
        command += ["--num_perm", str(peer.NUM_PERM), "--threshold", str(peer.THRESHOLD)]
        command += ["--b", str(peer.BANDS), "--r", str(peer.ROWS)]
        command += ["--hash_func", "xxh3", "--hash_bits", "32", "--num_proc", str(workers)]
        with peer.Clock(seconds, "read_sign_match_write"):
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-1500:])
        import datasets

        with peer.Clock(seconds, "read_back"):
            kept = datasets.load_from_disk(f"{work}/out").select_columns(["id"])["id"]
    settings = f"words cut at what is no letter, {peer.BANDS} bands of {peer.ROWS}, {workers} processes, not checked"
    return list(kept), settings


if __name__ == "__main__":
    peer.main(run)
