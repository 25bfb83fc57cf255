"""Crawls that come month by month: each is a run of its own, against those before, and keeps only what is new."""

import json
import tempfile
from pathlib import Path

import gpudedup

LEDGER = "the harbour office keeps a ledger of every boat that enters before noon and the clerk signs each line"
months = {
    "january": [LEDGER, "the fish market opens at five"],
    "february": [f"{LEDGER} today", "the fish market opens at six, and closes at ten"],
    "march": [LEDGER.upper(), "the fish market opens at six and closes at ten!", "snow on the pier"],
}
folder = Path(tempfile.mkdtemp())
before: list[Path] = []
for month, texts in months.items():
    crawl = folder / f"{month}.jsonl"
    crawl.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = gpudedup.run(crawl, folder / "runs" / month, against=before)
    print(f"{month} keeps {run.summary().kept}")
    for removal in run.removed.to_pylist():
        print(f"  not row {removal['row']}: it is row {removal['keeper_row']} of {Path(removal['keeper_run']).name}")
    before.append(run.path)
