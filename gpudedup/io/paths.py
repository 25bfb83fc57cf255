"""From paths, globs, directories and URLs to an ordered list of input files, and how each is opened."""

from __future__ import annotations

import glob
import os
import re
import stat
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from gpudedup.errors import InputError
from gpudedup.io.files import COPY_BYTES, LocalFile, RemoteFile, ahead
from gpudedup.io.remote import BUCKETS, Remote, Remotes, Url, file_parts, is_url
from gpudedup.io.skips import UnskippableError
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


Result = TypeVar("Result")


class ChangedError(UnskippableError):
    """A file that was changed or removed while it was read."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file. ``path`` is as given, or as found below the directory or glob that was given; of a remote file
    it is the URL without secrets.
    """

    path: str
    format: str
    compression: str | None
    fingerprint: Fingerprint
    remote: Remote | None = None
    """Where a file is that a URL names."""

    def open(self) -> LocalFile | RemoteFile:
        """The file, open for reading its bytes as they are stored. Raises OSError for a local one."""
        if self.remote is None:
            return LocalFile(self.path)
        return RemoteFile(self.remote, self.fingerprint.size_bytes, self.check_unchanged)

    def contents(self) -> bytes:
        """All bytes as they are stored. Raises ChangedError, and OSError or ValueError if they cannot be read."""
        if self.remote is not None:
            with self.open() as file:
                data = file.read()
            self.check_unchanged()
            return data
        handle = os.open(self.path, os.O_RDONLY)
        try:
            parts = []
            missing = self.fingerprint.size_bytes + 1
            while part := os.read(handle, min(missing, COPY_BYTES)):
                parts.append(part)
                missing -= len(part)
            now = _fingerprint(os.fstat(handle))
            if missing != 1 or now != self.fingerprint:
                self.check_unchanged()
                raise ValueError(f"{self.fingerprint.size_bytes + 1 - missing} bytes instead of {now.size_bytes}")
        finally:
            os.close(handle)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_unchanged(self) -> None:
        """Raise ChangedError if the file's size, time or tag differs from when it was found, or it is gone."""
        now = self._now()
        if now is None:
            raise ChangedError(f"{self.path} was removed while it was being read; run again")
        if now != self.fingerprint:
            raise ChangedError(
                f"{self.path} changed while it was being read: {self.fingerprint} at the start, {now} now; run again"
            )

    def _now(self) -> Fingerprint | None:
        if self.remote is not None:
            return _remote_mark(self.remote)
        try:
            return _fingerprint(os.stat(self.path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ChangedError(f"{self.path}: {error.strerror} while it was being read; run again") from error


def each(
    files: Sequence[InputFile], action: Callable[[InputFile], Result], *, by_size: bool = False
) -> Iterator[tuple[InputFile, Callable[[], Result]]]:
    """Each file with what gives ``action`` of it, which is done ahead for remote ones.

    ``by_size``: if it gives as much as the file holds, so that what was done ahead must be bounded.
    """
    if any(file.remote is not None for file in files):
        return zip(files, ahead(action, files, _size if by_size else lambda file: 0), strict=True)
    return ((file, partial(action, file)) for file in files)


def _size(file: InputFile) -> int:
    return file.fingerprint.size_bytes


def find_files(inputs: Sequence[str]) -> list[InputFile]:
    """The files that ``inputs`` name, in input order: paths and URLs as given, a glob or directory by the bytes of
    relative paths.

    A directory means every file below it with a known suffix; names that begin with "." or "_" are left out, and so are
    symbolic links back to a directory above. A glob that matches a directory means the same for it. Plain text files
    count only if a directory or glob gives nothing else, so that a README beside the data is no document.
    All of this holds for URLs too, with prefixes for directories; ``file://`` URLs mean the path.
    Raises InputError if something does not exist, is no regular file, has an unknown suffix, or is named twice, and
    for files of different formats, but CSV and TSV.
    """
    if not inputs:
        raise InputError("no input was given; name at least one file, directory or glob")
    remotes = Remotes()
    expand = partial(_expand, remotes=remotes)
    if any(map(is_url, inputs)):
        files = [file for result in ahead(expand, inputs) for file in result()]
    else:
        files = [file for given in inputs for file in expand(given)]
    seen: dict[object, str] = {}
    for file in files:
        identity = _identity(file)
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


def _expand(given: str, remotes: Remotes) -> list[InputFile]:
    if is_url(given):
        if Url.parse(given).scheme != "file":
            return _expand_url(given, remotes)
        given = remotes.of(given).path
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
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/[^/]", given):
        raise InputError(f"no file matches {given!r}; a Path holds no URL: give a str with ://")
    _require_permission(given)
    raise InputError(f"no file matches {given!r}; working directory is {os.getcwd()}")


def _expand_url(given: str, remotes: Remotes) -> list[InputFile]:
    remote = remotes.of(given)
    name, path = remote.url.name, remote.url.path
    if not path.endswith("/"):
        entry = remote.entry()
        if entry is not None and entry.mark is not None:
            return [_remote_file(remote, entry.mark)]
        if entry is None and not glob.has_magic(path):
            _require_bucket(remote)
            raise InputError(f"there is no file {name}, nor any below it")
    if not glob.has_magic(path):
        found = _below(remote)
        if not found:
            _require_bucket(remote)
            raise InputError(f"{name} holds no file with a known suffix ({KNOWN})")
    else:
        segments = [_unquoted_pattern(segment) for segment in path.split("/")[1:]]
        first = next(number for number, segment in enumerate(segments) if glob.has_magic(segment))
        folder = "".join(f"/{segment}" for segment in path.split("/")[1 : first + 1])
        remote = remotes.of(replace(remote.url, path=folder).whole)
        found = _matching(remote, segments[first:])
        if not found:
            _require_bucket(remote)
            raise InputError(f"no file with a known suffix matches {name} ({KNOWN})")
    chosen = set(_data_files(found))
    return [_remote_file(remote.below(path), mark) for path, mark in sorted(found.items()) if path in chosen]


def would_find(given: str, url: str) -> bool:
    """Whether an input URL means files below another URL, whatever their names are."""
    parts, folder = Url.parse(given), Url.parse(url)
    pattern = [_unquoted_pattern(segment) for segment in parts.path.rstrip("/").split("/")[1:]]
    names = folder.key.rstrip("/").split("/")[1:]
    if (parts.scheme, parts.authority) != (folder.scheme, folder.authority):
        return False
    if "**" in pattern:
        pattern = pattern[: pattern.index("**")]
    return all(fnmatchcase(name, segment) for name, segment in zip(names, pattern, strict=False))


def _unquoted_pattern(segment: str) -> str:
    """A segment of a URL as a pattern for ``fnmatch``: what was quoted in it stands for itself."""
    return re.sub("(?:%[0-9A-Fa-f]{2})+", lambda match: glob.escape(urllib.parse.unquote(match[0])), segment)


def _below(remote: Remote) -> dict[str, Fingerprint]:
    """Every file below a directory with a known suffix, by its relative path."""
    found = remote.entries(recursive=True)
    return {
        entry.path: entry.mark
        for entry in found
        if entry.mark is not None and suffix_of(entry.path) and not _has_hidden(entry.path.split("/"))
    }


def _matching(remote: Remote, pattern: Sequence[str]) -> dict[str, Fingerprint]:
    """The files below a directory that match a pattern of names, or are below a directory that does."""
    hidden = _has_hidden(pattern)
    found: dict[str, Fingerprint] = {}
    folders = [""]
    for number, segment in enumerate(pattern):
        last = number == len(pattern) - 1 or segment == "**"
        if not last and not glob.has_magic(segment):
            folders = [f"{folder}/{segment}" if folder else segment for folder in folders]
            continue
        inside = []
        for folder in folders:
            for entry in (remote.below(folder) if folder else remote).entries(recursive=segment == "**"):
                path = f"{folder}/{entry.path}" if folder else entry.path
                names = entry.path.split("/")
                if (_has_hidden(names) and not hidden) or not _matches(names, pattern[number:] if last else [segment]):
                    continue
                if entry.mark is None:
                    inside.append(path)
                elif last and suffix_of(path):
                    found[path] = entry.mark
        folders = inside
        if segment == "**":
            return found
    for folder in folders:
        found |= {f"{folder}/{path}": mark for path, mark in _below(remote.below(folder)).items()}
    return found


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of a path match a pattern of as many, in which ``**`` stands for any number of them."""
    reached = _after_any({0}, pattern)  # how many segments the names so far can use up
    for name in names:
        passed = {place for place in reached if place < len(pattern) and pattern[place] == "**"}
        passed |= {place + 1 for place in reached if place < len(pattern) and fnmatchcase(name, pattern[place])}
        reached = _after_any(passed, pattern)
    return len(pattern) in reached


def _after_any(reached: set[int], pattern: Sequence[str]) -> set[int]:
    """With the places after every ``**`` that is reached, since it may stand for nothing."""
    for place, segment in enumerate(pattern):
        if segment == "**" and place in reached:
            reached.add(place + 1)
    return reached


def _has_hidden(names: Iterable[str]) -> bool:
    return any(name.startswith((".", "_")) for name in names)


def _require_bucket(remote: Remote) -> None:
    """Raise InputError if there is no bucket of that name."""
    url = replace(remote.url, path="")
    if url.scheme in BUCKETS and Remote(remote.filesystem, url.authority, url).entry() is None:
        raise InputError(f"there is no bucket {url.authority!r} where {url.name} leads, or you may not see it")


def _remote_file(remote: Remote, mark: Fingerprint) -> InputFile:
    file_parts(remote.url.name)  # refuses keys that no output can be named after, and S3 by pyarrow cannot read
    return InputFile(remote.url.name, *_format_of(remote.url.name), mark, remote)


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
    for folder, path in {name.rpartition("/")[0]: path for name, path in zip(names, paths, strict=True)}.items():
        above = next((parent for parent in (folder, *map(str, PurePosixPath(folder).parents)) if parent in seen), None)
        if above is not None:
            raise InputError(
                f"the output for {path} would be in a directory that is the output for {seen[above]}; rename one"
            )
    return names


def _identity(file: InputFile) -> object:
    """What two files have in common only if they are one."""
    if file.remote is not None:
        return file.path
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def suffix_of(path: str) -> str | None:
    """The known suffix of a path or URL, or None."""
    name = os.path.basename(Url.parse(path).plain if is_url(path) else path).lower()
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def fingerprints_now(paths: Sequence[str]) -> Iterator[Callable[[], Fingerprint]]:
    """What gives the fingerprint of the file that a path or URL names now, and raises InputError if there is none; URLs
    are looked up ahead.
    """
    remotes = Remotes()
    if any(map(is_url, paths)):
        return ahead(partial(_look, remotes=remotes), paths)
    return (partial(_look, path, remotes) for path in paths)


def _look(path: str, remotes: Remotes) -> Fingerprint:
    if is_url(path):
        mark = _remote_mark(remotes.of(path))
        if mark is None:
            raise InputError(f"{path} is gone")
        return mark
    try:
        return _fingerprint(os.stat(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _remote_mark(remote: Remote) -> Fingerprint | None:
    entry = remote.entry()
    return None if entry is None else entry.mark


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
    return InputFile(path, *_format_of(path), _fingerprint(status))


def _format_of(path: str) -> tuple[str, str | None]:
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(f"{path} has no suffix that says its format; known are {KNOWN}")
    return FORMATS[suffix]
