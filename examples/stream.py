"""Documents that arrive in batches, each decided when it comes; the answer is that of one run over all."""

import pyarrow as pa

import gpudedup

batches = [
    pa.record_batch({"text": ["one two three four five six seven", "something else altogether, quite different"]}),
    pa.record_batch({"text": ["ONE two three four five six seven!", "a third text that nobody has seen before today"]}),
]
dedup = gpudedup.Deduplicator(threshold=0.8)
for batch in batches:
    print(batch.filter(dedup.filter(batch)).to_pydict()["text"])
