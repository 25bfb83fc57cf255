"""Files named by URLs: the filesystem behind a URL, and its name without what is secret in it.

``s3``, ``gs``, ``hdfs``, ``abfs`` and what else pyarrow knows goes by pyarrow.fs, any other scheme by fsspec, behind
the same interface: a ``pyarrow.fs.FileSystem`` and a path in it. Both are imported when the first URL is used.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.io.batches import say

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")

PUBLIC_OPTIONS = ("region", "scheme", "endpoint_override", "force_virtual_addressing", "tls_verify_certificates")
"""Options in the query of a URL that its name keeps, since it takes them to find the file again; others may be secret.
"""

PLACES_IN_USER_INFO = ("gs", "gcs", "abfs", "abfss")
"""Schemes with "anonymous" or a container, which are no secrets, where others have the user's name."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_UNQUOTED_KEY = re.compile(r"[^/@]*:(?!\d+(?:/|$))[^@]*@")
"""User info with a "/", which ends the authority of a URL: a secret key that should have been quoted."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RESERVED = re.compile(r"[\x00-\x20\x7f%?#*\[\]]")
"""Characters of a path that mean something else in a URL or a pattern, or nothing that can be seen."""


def is_url(path: str) -> bool:
    """Whether a path is a URL: a scheme of two letters or more, and ``://``."""
    return _URL.match(path) is not None


@dataclass(frozen=True, slots=True)
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

    @property
    def name(self) -> str:
        """The URL without user name, password, and options that may be secret: what is shown, recorded and logged."""
        options = "&".join(option for option in self._options if _is_public(option))
        return self._text(self._place_in_user_info, self.path, options)

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


def filesystem_of(url: str) -> tuple[FileSystem, str]:
    """The filesystem that a URL names, and the path in it.

    Options stand in the query as pyarrow takes them (``?region=...&endpoint_override=...``) or in the environment, and
    so do credentials. Nothing is read yet; only the region of an S3 bucket is asked for where nothing says it.
    Raises InputError for a scheme that nobody knows or whose package is missing, and for options that are wrong.
    """
    parts = Url.parse(url)
    if "::" in parts.authority + parts.path:
        raise InputError(f"{parts.name} is a chain of URLs; give the URL of a file")
    if parts.scheme in ("file", *ARROW_SCHEMES):
        from pyarrow.fs import FileSystem

        try:
            filesystem, path = FileSystem.from_uri(parts.whole)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(_refusal(parts, error)) from None  # its message may hold the secret of the URL
        return filesystem, path
    return _by_fsspec(parts)


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
