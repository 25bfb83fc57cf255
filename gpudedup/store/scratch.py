"""Local directories that are there as long as their process: what one that was killed left, the next deletes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
import uuid
from pathlib import Path

from gpudedup.store.atomic import TEMPORARY, output_errors


class ScratchDirectory(contextlib.AbstractContextManager["ScratchDirectory"]):
    """A new directory in ``parent`` (if None, where the system has its temporary files), whose name begins with
    ``prefix``; close it, and it is deleted with all that is in it. The system drops its lock when the process ends,
    however it ends.

    Raises OutputError if it cannot be made.
    """

    def __init__(self, prefix: str, parent: str | None) -> None:
        parent = parent or tempfile.gettempdir()
        # Of this machine only: on a network file system the locks of others are not always seen.
        prefix += re.sub(r"[^\w.-]", "_", socket.gethostname()) + "-"
        self.path = Path(parent) / f"{prefix}{uuid.uuid4().hex}"
        with output_errors(Path(parent)):
            _delete_leftovers(prefix, parent)
            unnamed = tempfile.mkdtemp(prefix=TEMPORARY, dir=parent)
            self._handle = os.open(unnamed, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # no locks on this file system: nobody deletes anything there
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(unnamed, self.path)  # only now, so that none of this name is ever without its lock

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _delete_leftovers(prefix: str, parent: str) -> None:
    """Delete directories of this user that no process has locked."""
    for name in os.listdir(parent):
        if not re.fullmatch(re.escape(prefix) + "[0-9a-f]{32}", name):
            continue
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:  # in use, no directory, or no locks here
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            opened.callback(os.close, handle)
            if os.fstat(handle).st_uid == os.geteuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
