"""The peers, and the virtual environments that they run in: the one place that uses a network, by pip."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpudedup.backends.cuda.detect import detect
from gpudedup.errors import BenchmarkError, OutputError, ParameterError

PROGRAMS = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True)
class Peer:
    """A program that does the job, and how it is used."""

    name: str
    package: str
    """On PyPI; its version is the peer's."""
    module: str
    """Its program in PROGRAMS."""
    beside: tuple[str, ...] = ()
    """Packages that it needs for this job and does not ask for itself."""
    environment: str = ""
    """Of another peer, whose environment it shares."""
    gpu: bool = False
    slow: bool = False
    """Of a large corpus it gets a smaller one of the same kind."""
    own_words: bool = False
    """It cuts words in its own way, and makes one of a Chinese clause: of such text it has less to do than others."""

    @property
    def folder(self) -> str:
        return self.environment or self.name

    @property
    def program(self) -> Path:
        return PROGRAMS / f"{self.module}.py"


OURS = (Peer("gpudedup", "gpudedup", "gpudedup_peer"), Peer("gpudedup, 64 MB", "gpudedup", "gpudedup_lean_peer"))
"""In the Python that runs this, measured in the same way as their peers: the default, and with little memory."""

PEERS = (
    Peer("rensa", "rensa", "rensa_peer"),
    Peer("rensa, all cores", "rensa", "rensa_all_cores_peer", environment="rensa"),
    Peer("gaoya", "gaoya", "gaoya_peer", own_words=True),
    Peer("gaoya, same shingles", "gaoya", "gaoya_same_shingles_peer", environment="gaoya", slow=True),
    Peer("fastsketchlsh", "fastsketchlsh", "fastsketchlsh_peer"),
    Peer("datasketch", "datasketch", "datasketch_peer", beside=("xxhash",), slow=True),
    Peer("text-dedup", "text-dedup", "text_dedup_peer", slow=True, own_words=True),
    Peer("datatrove", "datatrove", "datatrove_peer", beside=("regex", "tokenizers", "xxhash<4"), slow=True),
    Peer("nvtext", "cudf-cu12", "nvtext_peer", gpu=True),
    Peer("nemo-curator", "nemo-curator", "nemo_curator_peer", beside=("nemo-curator[text_cuda12]",), gpu=True),
)


def no_gpu() -> str | None:
    """Why peers that need a GPU cannot run here; None if they may."""
    found = detect()
    return None if found.driver_cuda else f"needs an NVIDIA GPU: {found.reason}"


def python_of(directory: Path, peer: Peer) -> Path:
    return directory / peer.folder / "bin" / "python"


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names, all if there are none. Raises ParameterError for a name that is none."""
    known = {peer.name: peer for peer in PEERS} | {peer.folder: peer for peer in PEERS if not peer.environment}
    unknown = [name for name in names if name not in known]
    if unknown:
        folders = dict.fromkeys(peer.folder for peer in PEERS)
        raise ParameterError(f"there is no peer {unknown[0]!r}; there are {', '.join(folders)}")
    return [known[name] for name in names] if names else list(PEERS)


def install(
    directory: Path, names: Sequence[str] = (), say: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[Peer, str]]:
    """Make the environments of peers (all, if none is named) and fill them from PyPI; those that are there stay.

    Yields each peer with its version, or with why it could not be installed: a peer that fails does not keep the others
    out. Raises ParameterError for an unknown name and OutputError if ``directory`` cannot be made.
    """
    wanted = chosen(names)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {directory}: {error.strerror}; name another directory") from None
    without = no_gpu()
    for peer in wanted:
        if peer.gpu and without:
            yield peer, without
            continue
        python = python_of(directory, peer)
        folder = python.parent.parent
        if folder.exists() and not (folder / "pyvenv.cfg").exists() and (not folder.is_dir() or any(folder.iterdir())):
            yield peer, f"cannot be installed: {folder} is there and no environment; name another directory"
            continue
        try:
            if installed_version(python, "pip") is None:  # none, or one that was not made to its end
                say(f"{peer.folder}: making its environment")
                venv.create(folder, with_pip=True, clear=True)
            if installed_version(python, peer.package) is None:
                say(f"{peer.folder}: pip install {' '.join((peer.package, *peer.beside))}")
                _pip(python, ("pyarrow", peer.package, *peer.beside))
            yield peer, installed_version(python, peer.package) or "cannot be installed: pip left no such package"
        except (OSError, subprocess.CalledProcessError, BenchmarkError) as error:
            yield peer, f"cannot be installed: {error}"


def installed_version(python: Path, package: str) -> str | None:
    """The version of a package in an environment; None if it is not there."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    try:
        done = subprocess.run([str(python), "-I", "-c", code, package], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _pip(python: Path, packages: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise BenchmarkError(lines[-1][:300] if lines else f"pip ended with exit code {done.returncode}")
