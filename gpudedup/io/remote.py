"""Files named by URLs: names without what is secret in them, the filesystem behind a URL, and what is there.

``s3``, ``gs``, ``hdfs``, ``abfs`` and what else pyarrow knows goes by pyarrow.fs, any other scheme by fsspec, behind
the same interface: a ``pyarrow.fs.FileSystem`` and a path in it. Both are imported when the first URL is used.
"""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.io.batches import say
from gpudedup.io.skips import UnskippableError
from gpudedup.io.source import Fingerprint
from gpudedup.store.stopping import checkpoint

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")

PUBLIC_OPTIONS = ("region", "scheme", "endpoint_override", "force_virtual_addressing", "tls_verify_certificates")
"""Options in the query of a URL that its name keeps, since it takes them to find the file again; others may be secret.
"""

PLACES_IN_USER_INFO = ("gs", "gcs", "abfs", "abfss")
"""Schemes with "anonymous" or a container, which are no secrets, where others have the user's name."""

BUCKETS = ("s3", "gs", "gcs")
"""Schemes with a bucket before the first "/"."""

REQUEST_SECONDS, CONNECT_SECONDS = 20.0, 5.0
"""How long S3 may be silent. A store under load needs more than 3 and 1, which pyarrow takes for a URL."""

S3_ATTEMPTS = 3
"""Of the S3 client, with pauses of its own, at all that it does."""

PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each new try of what could not be read."""

TRYING_SECONDS = 60.0
"""No new try begins later than this after the first, so that a store that never answers ends in some minutes."""

_FINAL = re.compile(
    r"ACCESS_DENIED|NO_SUCH_|NOT_FOUND|INVALID_|EXPIRED|SIGNATURE|UNRECOGNIZED|HTTP status (?:3|4(?!08|29))\d\d"
)
"""In messages of S3: refusals that another try does not change."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_UNQUOTED_KEY = re.compile(r"[^/@]*:(?!\d+(?:/|$))[^@]*@")
"""User info with a "/", which ends the authority of a URL: a secret key that should have been quoted."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RESERVED = re.compile(r"[\x00-\x20\x7f%?#*\[\]]")
"""Characters of a path that mean something else in a URL or a pattern, or nothing that can be seen."""

Result = TypeVar("Result")


def is_url(path: str) -> bool:
    """Whether a path is a URL: a scheme of two letters or more, and ``://``."""
    return _URL.match(path) is not None


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """A URL in parts, as they were written. ``user`` has no "@", ``path`` begins with "/" if it is not empty."""

    scheme: str
    user: str
    authority: str
    path: str
    query: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """The parts of a URL. What follows "?" are options; "#" is a letter like others."""
        match = _URL.match(text)
        assert match is not None
        scheme, rest = match[1].lower(), match[2]
        secret = _UNQUOTED_KEY.match(rest)
        if secret is not None:
            user, rest = secret[0][:-1], rest[secret.end() :]
        else:
            user = ""
        place, _, query = rest.partition("?")
        authority, slash, path = place.partition("/")
        if "@" in authority:
            user, _, authority = authority.rpartition("@")
        return cls(scheme, user, authority, slash + path, query)

    def __repr__(self) -> str:
        return f"Url({self.name!r})"

    @property
    def name(self) -> str:
        """The URL without user name, password, and options that may be secret: what is shown, recorded and logged.

        A file has the same name whether its URL was given or found, and with whatever quotes.
        """
        options = "&".join(option for option in self._options if _is_public(option))
        return self._text(self._place_in_user_info, self.path if self.is_web else quoted(self.key), options)

    @property
    def whole(self) -> str:
        """The URL with all of its parts and a quoted path, as a filesystem takes it."""
        path = self.path if self.is_web else urllib.parse.quote(self.key, safe="/")
        return self._text(self.user, path, self.query)

    @property
    def plain(self) -> str:
        """The URL with an unquoted path and without options."""
        return self._text(self.user, self.key, "")

    @property
    def key(self) -> str:
        """The path, unquoted."""
        return urllib.parse.unquote(self.path)

    @property
    def is_web(self) -> bool:
        """Whether quoting and options are the server's matter."""
        return self.scheme in ("http", "https")

    def below(self, relative: str) -> Url:
        """The URL of a file, by its path relative to this one's."""
        return replace(self, path=f"{self.path.rstrip('/')}/{quoted(relative)}")

    def redacted(self, text: str) -> str:
        """A message without what is secret in the URL."""
        secrets = [option.partition("=")[2] for option in self._options if not _is_public(option)]
        name, _, password = self.user.partition(":")
        secrets += [password, "" if self._place_in_user_info else name]
        for secret in sorted(secrets, key=len, reverse=True):
            for form in (secret, urllib.parse.unquote(secret)):
                if len(form) > 3:  # a shorter one is none, and would take much else with it
                    text = text.replace(form, "***")
        return text

    @property
    def _options(self) -> list[str]:
        return self.query.split("&") if self.query else []

    @property
    def _place_in_user_info(self) -> str:
        return self.user.partition(":")[0] if self.scheme in PLACES_IN_USER_INFO else ""

    def _text(self, user: str, path: str, query: str) -> str:
        return f"{self.scheme}://{user}{'@' if user else ''}{self.authority}{path}{'?' if query else ''}{query}"


def _is_public(option: str) -> bool:
    return option.partition("=")[0] in PUBLIC_OPTIONS


def quoted(path: str) -> str:
    """A path as it stands in a URL: letters of all scripts as they are."""
    return _RESERVED.sub(lambda match: urllib.parse.quote(match[0], safe=""), path)


def file_parts(url: str) -> list[str]:
    """The names of the bucket or host, the directories and the file that a URL is of, for files made from it.

    Control characters stay quoted. Raises InputError for names that no file below a directory can have.
    """
    parts = Url.parse(url)
    found = [parts.authority, *parts.key.split("/")[1:]]
    for part in found:
        if part in ("", ".", ".."):
            raise InputError(
                f"{parts.name} has a part {part!r}, which no file of that name can be made for; copy it elsewhere"
            )
    return [_CONTROL.sub(lambda match: urllib.parse.quote(match[0]), part) for part in found]


class UnreachableError(UnskippableError):
    """A storage that refuses, or does not answer after some tries."""


def filesystem_of(url: str) -> tuple[FileSystem, str]:
    """The filesystem that a URL names, and the path in it.

    Options stand in the query as pyarrow takes them (``?region=...&endpoint_override=...``) or in the environment, and
    so do credentials. Nothing is read yet; only the region of an S3 bucket is asked for where nothing says it.
    Raises InputError for a scheme that nobody knows or whose package is missing, and for options that are wrong.
    """
    parts = Url.parse(url)
    if "::" in parts.authority + parts.path:
        raise InputError(f"{parts.name} is a chain of URLs; give the URL of a file")
    if parts.scheme not in ("file", *ARROW_SCHEMES):
        return _by_fsspec(parts)
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(parts.whole)
        return (_patient(filesystem) if parts.scheme == "s3" else filesystem), path
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(_refusal(parts, error)) from None  # its message may hold the secret of the URL


def _patient(filesystem: FileSystem) -> FileSystem:
    """The same S3 filesystem with other timeouts, which no URL can say."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    _, (options,) = filesystem.__reduce__()  # what it is pickled as: all arguments
    timeouts = {"request_timeout": REQUEST_SECONDS, "connect_timeout": CONNECT_SECONDS}
    return S3FileSystem(**{**options, **timeouts}, retry_strategy=AwsStandardS3RetryStrategy(S3_ATTEMPTS))


def _refusal(url: Url, error: BaseException) -> str:
    reason = url.redacted(say(error))
    if "resolving region" in reason:
        return (
            f"cannot find the region of {url.name}: {reason[:500]}; give it by ?region=... or AWS_REGION, or the "
            "server by ?endpoint_override=... or AWS_ENDPOINT_URL"
        )
    return f"{url.name} cannot be used: {reason[:500]}"


def _by_fsspec(url: Url) -> tuple[FileSystem, str]:
    try:
        import fsspec
    except ImportError:
        raise InputError(
            f"{url.scheme}:// needs fsspec: pip install fsspec, and its package for {url.scheme}"
        ) from None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    if url.query and not url.is_web:
        raise InputError(
            f"{url.name}: {url.scheme}:// takes no options in the URL; fsspec reads them from the environment "
            f"(FSSPEC_{url.scheme.upper()}_...) or its configuration files"
        )
    try:
        filesystem, path = fsspec.core.url_to_fs(url.whole if url.is_web else url.plain)
    except ImportError as error:
        raise InputError(f"{url.scheme}:// needs another package: {url.redacted(say(error))}") from None
    except Exception as error:  # of any package
        raise InputError(_refusal(url, error)) from None
    return PyFileSystem(FSSpecHandler(filesystem)), path


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that was found, or a directory, which has no mark."""

    path: str
    mark: Fingerprint | None


@dataclass(frozen=True, slots=True)
class Remote:
    """A path in a filesystem, and the URL that says it."""

    filesystem: FileSystem
    path: str
    url: Url

    def entry(self) -> Entry | None:
        """What is there now, if anything is. Raises UnreachableError."""
        return self.persistently(self._entry)

    def entries(self, *, recursive: bool) -> list[Entry]:
        """What is in the directory, by paths relative to it; nothing if it is not there. Raises UnreachableError."""
        above = self.path.rstrip("/") + "/"
        found = self.persistently(lambda: list(self._entries(recursive)))
        return [replace(entry, path=entry.path[len(above) :]) for entry in found if entry.path.startswith(above)]

    def below(self, relative: str) -> Remote:
        """What is in this directory by a relative path."""
        return Remote(self.filesystem, f"{self.path.rstrip('/')}/{relative}", self.url.below(relative))

    def open(self) -> pa.NativeFile:
        """The file, for ``read_at`` from any thread. Raises what its filesystem does."""
        return self.filesystem.open_input_file(self.path)

    def persistently(self, action: Callable[[], Result]) -> Result:
        """What ``action`` gives, tried again with pauses if it fails. Raises UnreachableError for the last failure."""
        start = time.monotonic()
        for pause in (*PAUSES, None):
            checkpoint()
            try:
                return action()
            except InputError:
                raise
            except Exception as error:  # of any package
                final = isinstance(error, FileNotFoundError | PermissionError | pa.ArrowInvalid)
                if final or _FINAL.search(str(error)) or pause is None or time.monotonic() - start > TRYING_SECONDS:
                    raise UnreachableError(_why(self.url, error)) from None  # its message may hold a secret
                time.sleep(pause)
        raise AssertionError

    def _entry(self) -> Entry | None:
        packaged = _fsspec_of(self.filesystem)
        if packaged is None:
            return _entry_of_arrow(self.filesystem.get_file_info(self.path))
        packaged.invalidate_cache(self.path)
        try:
            return _entry_of_fsspec(self.path, packaged.info(self.path), self.url)
        except FileNotFoundError:
            return None

    def _entries(self, recursive: bool) -> Iterator[Entry]:
        from pyarrow.fs import FileSelector

        packaged = _fsspec_of(self.filesystem)
        try:
            if packaged is None:
                found = self.filesystem.get_file_info(FileSelector(self.path, recursive=recursive))
                yield from filter(None, map(_entry_of_arrow, found))
            else:
                packaged.invalidate_cache(self.path)
                depth = None if recursive else 1
                for path, info in packaged.find(self.path, maxdepth=depth, withdirs=True, detail=True).items():
                    yield _entry_of_fsspec(path, info, self.url)
        except FileNotFoundError:
            return


class Remotes:
    """What URLs name, with one filesystem for all in one bucket: each has connections of its own."""

    def __init__(self) -> None:
        self._filesystems: dict[Url, FileSystem] = {}

    def of(self, text: str) -> Remote:
        """What a URL names. Raises InputError as ``filesystem_of``."""
        url = Url.parse(text)
        bucket = replace(url, path="")
        known = self._filesystems.get(bucket)
        if known is not None and url.scheme in BUCKETS:
            return Remote(known, url.authority + url.key, url)
        filesystem, path = filesystem_of(text)
        self._filesystems[bucket] = filesystem
        return Remote(filesystem, path, url)


def _fsspec_of(filesystem: FileSystem) -> Any:
    """The filesystem of fsspec that is behind one of pyarrow, or None: it tells more than pyarrow passes on."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    if isinstance(filesystem, PyFileSystem) and isinstance(filesystem.handler, FSSpecHandler):
        return filesystem.handler.fs
    return None


def _entry_of_arrow(info: FileInfo) -> Entry | None:
    if not info.is_file:
        return Entry(info.path, None) if info.type.name == "Directory" else None
    # Whole seconds: a listing may say more of them than a request for the file.
    return Entry(info.path, Fingerprint(info.size, (info.mtime_ns or 0) // 10**9 * 10**9))


def _entry_of_fsspec(path: str, info: dict[str, Any], url: Url) -> Entry:
    if info["type"] == "directory":
        return Entry(path, None)
    if info.get("size") is None:
        raise InputError(f"{url.name}: its server does not say how long the file is; copy it to a disk first")
    changed = next((info[key] for key in ("mtime", "LastModified", "last_modified") if info.get(key)), 0)
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed
    etag = next((info[key] for key in ("ETag", "etag", "e_tag") if info.get(key)), None)
    mtime_ns = int(seconds) * 10**9 if isinstance(seconds, int | float) else 0
    return Entry(path, Fingerprint(int(info["size"]), mtime_ns, None if etag is None else str(etag)))


def _why(url: Url, error: BaseException) -> str:
    reason = url.redacted(say(error))
    if isinstance(error, PermissionError) or re.search(r"ACCESS|SIGNATURE|EXPIRED|UNRECOGNIZED|\b40[13]\b", reason):
        way_out = "check the credentials, and what they permit"
    elif "NO_SUCH_BUCKET" in reason:
        way_out = "check the name of the bucket, and the region"
    elif re.search(r"HTTP status 3", reason):
        way_out = "give the region of the bucket by ?region=... or AWS_REGION"
    else:
        way_out = "check the address and the network, and run again"
    return f"cannot read {url.name}: {reason[:500]}; {way_out}"
