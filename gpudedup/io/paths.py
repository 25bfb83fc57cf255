"""From paths, globs and directories to an ordered list of input files."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gpudedup.errors import InputError
from gpudedup.io.remote import file_parts, is_url
from gpudedup.io.source import Fingerprint

_WHOLE = {".parquet": "parquet", ".arrow": "ipc", ".arrows": "ipc", ".feather": "ipc", ".ipc": "ipc"}
_STREAMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "plain", ".md": "plain"}

FORMATS: dict[str, tuple[str, str | None]] = {suffix: (name, None) for suffix, name in (_WHOLE | _STREAMS).items()}
FORMATS |= {suffix + ".gz": (name, "gzip") for suffix, name in _STREAMS.items()}
FORMATS |= {suffix + ".zst": (name, "zstd") for suffix, name in _STREAMS.items()}
"""Known suffixes, whatever their case: format and compression of the file as a whole."""

KNOWN = f"{', '.join(_WHOLE)}; {', '.join(_STREAMS)}, also with .gz or .zst"

FORMAT_NAMES = {
    "parquet": "Parquet",
    "ipc": "Arrow IPC",
    "jsonl": "JSON Lines",
    "csv": "CSV",
    "tsv": "TSV",
    "plain": "plain text",
}


class ChangedError(InputError):
    """A file that was changed or removed while it was read; no damage that could be skipped."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file. ``path`` is as given, or as found below the directory or glob that was given."""

    path: str
    format: str
    compression: str | None
    fingerprint: Fingerprint

    def check_unchanged(self) -> None:
        """Raise ChangedError if the file's size or time differs from when it was found, or it is gone."""
        try:
            now = _fingerprint(os.stat(self.path))
        except FileNotFoundError as error:
            raise ChangedError(f"{self.path} was removed while it was being read; run again") from error
        except OSError as error:
            raise ChangedError(f"{self.path}: {error.strerror} while it was being read; run again") from error
        if now != self.fingerprint:
            before = self.fingerprint
            raise ChangedError(
                f"{self.path} changed while it was being read: {before.size_bytes} bytes with mtime_ns "
                f"{before.mtime_ns} at the start, {now.size_bytes} bytes with mtime_ns {now.mtime_ns} now; run again"
            )


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files that ``inputs`` name, in input order: paths as given, a glob or directory by the bytes of relative
    paths.

    A directory means every file below it with a known suffix; names that begin with "." or "_" are left out, and so are
    symbolic links back to a directory above. A glob that matches a directory means the same for it. Plain text files
    count only if a directory or glob gives nothing else, so that a README beside the data is no document.
    Raises InputError if something does not exist, is no regular file, has an unknown suffix, or is named twice, and
    for files of different formats, but CSV and TSV.
    """
    if not inputs:
        raise InputError("no input was given; name at least one file, directory or glob")
    files: list[InputFile] = []
    for given in inputs:
        files.extend(_expand(given))
    seen: dict[tuple[int, int], str] = {}
    for file in files:
        try:
            status = os.stat(file.path)
        except OSError as error:
            raise InputError(f"cannot read {file.path}: {error.strerror}") from error
        identity = (status.st_dev, status.st_ino)
        other = seen.get(identity)
        seen[identity] = file.path
        if other is not None:
            names = other if other == file.path else f"as {other} and as {file.path}"
            raise InputError(f"the same file is given twice, {names}; name it once")
    formats = {("csv" if file.format == "tsv" else file.format): file for file in reversed(files)}
    if len(formats) > 1:
        examples = " and ".join(f"{file.path} ({FORMAT_NAMES[file.format]})" for file in reversed(formats.values()))
        raise InputError(f"inputs of different formats cannot be mixed in one run: {examples}; convert one of them")
    return files


def _expand(given: str) -> list[InputFile]:
    if "\0" in given:
        raise InputError(f"path {given!r} contains a NUL character")
    if os.path.isdir(given):
        found = sorted(_data_files(_walk(given)), key=lambda path: os.fsencode(os.path.relpath(path, given)))
        if not found:
            raise InputError(f"directory {given} holds no file with a known suffix ({KNOWN})")
        return [_input_file(path) for path in found]
    if os.path.lexists(given):
        return [_input_file(given)]
    if glob.has_magic(given):
        matches = glob.glob(given, recursive=True)
        found = []
        for path in matches:
            if os.path.isdir(path):
                if "**" not in given and not _hidden(path, given):
                    found.extend(_walk(path))
            elif suffix_of(path) and not _hidden(path, given) and not ("**" in given and _goes_in_circles(path)):
                found.append(path)
        if found:
            return [_input_file(path) for path in sorted(_data_files(set(found)), key=os.fsencode)]
        if matches:
            raise InputError(f"{given} matches {matches[0]} but nothing with a known suffix ({KNOWN})")
    if "://" in given:
        raise InputError(f"{given} is a URL; only local files can be read: mount or copy them first")
    _require_permission(given)
    raise InputError(f"no file matches {given!r}; working directory is {os.getcwd()}")


def _require_permission(given: str) -> None:
    """Raise InputError if a directory on the way to a path, or to where a glob begins, may not be looked into."""
    folder = given
    if glob.has_magic(given):
        parts = Path(given).parts
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        folder = str(Path(*parts[:first]))
    try:
        os.stat(folder)
        if folder != given:
            os.scandir(folder).close()
    except PermissionError as error:
        raise InputError(f"cannot look for {given}: permission denied for {error.filename}") from error
    except OSError:
        return


def _hidden(path: str, pattern: str) -> bool:
    """Whether a name that a wildcard stands for begins with "." or "_", unless the pattern itself writes such a
    name.
    """
    pattern_parts = os.path.normpath(pattern).split(os.sep)
    first = next(number for number, part in enumerate(pattern_parts) if glob.has_magic(part))
    if any(part.startswith((".", "_")) for part in pattern_parts[first:]):
        return False
    return any(part.startswith((".", "_")) for part in os.path.normpath(path).split(os.sep)[first:])


def _goes_in_circles(path: str) -> bool:
    """Whether a path passes through one directory twice, as by a link to a directory above."""
    seen = set()
    for folder in Path(path).parents:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return folder != Path(".")
        seen.add(identity)
    return False


def _walk(root: str) -> Iterator[str]:
    """Every file below ``root`` with a known suffix, following links, but no link to a directory above itself."""
    todo = [(root, frozenset[tuple[int, int]]())]
    while todo:
        folder, above = todo.pop()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"cannot list directory {folder}: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if os.path.isdir(entry.path):  # false, not an error, for a link to itself
                todo.append((entry.path, above | {identity}))
            elif suffix_of(entry.name):
                yield entry.path


def _data_files(paths: Iterable[str]) -> list[str]:
    """The files that are not plain text, or all of them if there is no other."""
    found = list(paths)
    return [path for path in found if FORMATS[suffix_of(path) or ""][0] != "plain"] or found


def common_names(paths: Sequence[str]) -> list[str]:
    """Each path or URL relative to the deepest directory that all are in, with "/": names for files made from them.

    Symbolic links are not followed, so names stay as given. Raises InputError where two would get one name, or one the
    name of a directory that another is in, and for what ``file_parts`` refuses.
    """
    split = [["url", *file_parts(path)] if is_url(path) else os.path.abspath(path).split(os.sep) for path in paths]
    folders = [parts[:-1] for parts in split]
    shared = len(os.path.commonprefix(folders))  # noqa: RUF071  of lists, so it compares parts
    names = ["/".join(parts[max(1, shared) :]) for parts in split]
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        other = seen.setdefault(name, path)
        if other != path:
            raise InputError(f"outputs for {other} and {path} would have the same name {name!r}; rename one")
    for name, path in zip(names, paths, strict=True):
        above = next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in seen), None)
        if above is not None:
            raise InputError(
                f"the output for {path} would be in a directory that is the output for {seen[above]}; rename one"
            )
    return names


def suffix_of(path: str) -> str | None:
    """The known suffix of a path, or None."""
    name = os.path.basename(path).lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def _fingerprint(status: os.stat_result) -> Fingerprint:
    return Fingerprint(status.st_size, status.st_mtime_ns)


def _input_file(path: str) -> InputFile:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"file name {os.fsencode(path)!r} is not UTF-8 and cannot be recorded; rename it") from None
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; give files, directories or globs")
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(f"{path} has no suffix that says its format; known are {KNOWN}")
    kind, compression = FORMATS[suffix]
    return InputFile(path, kind, compression, _fingerprint(status))
