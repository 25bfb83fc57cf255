"""Tables of other libraries go in as they are; the mask that comes out is Arrow, which all of them read."""

import duckdb
import pandas
import polars

import gpudedup

texts = ["one two three four five six seven", "ONE two three four five six seven!", "something else altogether"]

frame = polars.DataFrame({"text": texts})
mask = gpudedup.deduplicate(frame).keep_mask
print(frame.filter(polars.Series(mask))["text"].to_list())

table = pandas.DataFrame({"body": texts})
mask = gpudedup.deduplicate(table, text_column="body").keep_mask
print(table[mask.to_numpy(zero_copy_only=False)]["body"].tolist())

relation = duckdb.sql("SELECT unnest(['a b c d e f', 'A B C D E F', 'g']) AS text")
print(gpudedup.deduplicate(relation).kept().read_all().to_pydict()["text"])
