import gpudedup

documents = [
    "The harbour office keeps a ledger of every boat that enters before noon, and the clerk signs each line.",
    "THE HARBOUR OFFICE keeps a ledger of every boat that enters before noon - and the clerk signs each line!",
    "The harbour office keeps a ledger of every boat that enters before noon, and the clerk signs each line. Share!",
    "這份軟體手冊說明如何安裝與設定監控系統。",
    "这份软体手册说明如何安装与设定监控系统。",
    "The fish market opens at five.",
]
result = gpudedup.deduplicate(documents)
print(result.keep_mask.to_pylist())
for removal in result.removed.to_pylist():
    print("{row} {reason:5} of {keeper_row}, similarity {similarity:.3f}".format(**removal))
