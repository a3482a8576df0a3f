"""The folder of a run, and how it stays whole whenever the power fails.

    config.json             the recipe as it was begun
    metrics.jsonl           one line for each step that was logged
    samples/                what the model made on its way, of the same noise at each step that is kept
    film.png                the first of these pictures as a film strip: a row for each of up to ten steps
    curves.png              the metrics as a picture
    checkpoint.safetensors  everything the next step depends on

Every file but the metrics is written under another name and then renamed, so its name always means a whole file. The
checkpoint of a step is written last, after all that belongs to the step is safe on disk: it is the commit. Whatever
was written after it is written again, with the same content, by the run that continues from it.

Nothing is ever unpickled: arrays are safetensors, all else is JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.serialization import ENTRY, pack, unpack, write_whole

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"
SAMPLES, FILM, CURVES = "samples", "film.png", "curves.png"


class TrainingError(ValueError):
    """A run cannot begin, continue or be read; the message is one sentence that says why."""


def is_empty(folder: Path) -> bool:
    """Is the folder missing, or empty but for files that a killed write left unfinished?"""
    return not folder.exists() or all(re.fullmatch(r"\..*\.tmp", entry.name) for entry in folder.iterdir())


def kept_samples(folder: Path, step: int, suffix: str, most: int) -> list[tuple[int, Path]]:
    """Steps up to `step`, ascending, and the files of what was made then: `most` of those that there are, evenly spread."""
    files = [path for path in (folder / SAMPLES).glob(f"*{suffix}") if path.stem.isdecimal() and int(path.stem) <= step]
    kept = sorted((int(path.stem), path) for path in files)
    return [kept[round(i)] for i in np.linspace(0, len(kept) - 1, min(most, len(kept)))]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder. The system lifts the lock when this process ends, even if it is killed.

    Raises TrainingError where another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks: there a run is whole as long as nobody starts two in one folder
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{folder}: another process is training in this folder.") from None
        except OSError:  # a network file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


class MetricsLog:
    """`metrics.jsonl`, continued after step `keep`: lines of later steps, and a line cut short, are removed first."""

    def __init__(self, path: Path, *, keep: int):
        self.rows = [row for row in read_metrics(path) if row["step"] <= keep]
        write_whole(path, "".join(_line(row) for row in self.rows))
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._file.write(_line(row))

    def sync(self) -> None:
        """Return when every line is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"  # JSON has no NaN: readers other than Python's would refuse the line


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, steps ascending. Any other line, such as one cut short by a kill, is passed over."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_row(row) and row["step"] > (rows[-1]["step"] if rows else -1):
            rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    """Does this row of metrics hold a step, and the seconds that the run had taken by then?"""
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    seconds = row.get("seconds")
    return type(seconds) in (int, float) and math.isfinite(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------

# The checksum covers every byte of the file, its own digits counted as zeros. It stands in the file's header, in the JSON of
# the metadata, which have one entry only: safetensors orders several at random, and equal states shall make equal files.
_SEAL = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, numbers, texts and arrays, sealed with a SHA-256. Equal trees make equal files."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps({"sha256": "0" * 64, "state": pack(state, "", arrays, "checkpoint")})
    raw = bytearray(save(arrays, metadata={ENTRY: tree}))
    raw[slice(*_SEAL.search(raw).span(1))] = _digest(raw).encode()
    write_whole(path, raw)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The tree that `save_checkpoint` wrote.

    Raises TrainingError: no such file, not byte for byte what was written, or of another version.
    """
    from safetensors.numpy import load

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TrainingError(f"{path.parent}: expected the folder of a run, found no {path.name} there.") from None
    seal = _SEAL.search(raw)
    if seal is None or _digest(raw) != seal[1].decode():
        raise TrainingError(f"{path}: damaged or not a checkpoint of scratchgen (its checksum does not fit its content).")
    with of_this_version(path):
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        return unpack(json.loads(header["__metadata__"][ENTRY])["state"], load(raw))


@contextlib.contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Inside the `with`, a checkpoint is read as this version writes them. Raises TrainingError where it is different.

    A right checksum says that the content is what was written, not that this version wrote it: its names, types and sizes may
    be any. So every error inside the `with` (a missing key, a text for a float, weights of other shapes) means the same.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, TrainingError) and str(error).startswith(str(path.parent)):
            raise  # its sentence already names the run
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        said = " ".join(said.split()).rstrip(".")[:300]
        raise TrainingError(f"{path}: written by another version of scratchgen ({said}).") from error


def _digest(raw: bytes | bytearray) -> str:
    begin, end = _SEAL.search(raw).span(1)
    view, sha256 = memoryview(raw), hashlib.sha256()
    for part in (view[:begin], b"0" * 64, view[end:]):
        sha256.update(part)
    return sha256.hexdigest()
