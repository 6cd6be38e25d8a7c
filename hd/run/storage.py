"""Files that appear whole or not at all, their digests, and where the project writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hd.config import InputError

ROOT = Path(__file__).resolve().parents[2]
LOCK_PATIENCE = 20.0  # seconds; a kernel whose parent was killed stops within this


def is_checkout() -> bool:
    """Whether the package lies in the project's repository, not installed somewhere by itself."""
    return (ROOT / "book").is_dir() and (ROOT / "pyproject.toml").is_file()


def require_checkout(what: str) -> None:
    """Raise InputError unless the notebooks and published results are there, beside the package."""
    if not is_checkout():
        raise InputError(f"{what} needs a checkout of the project: this package is installed "
                         "without its notebooks and results. Clone the repository and run it from "
                         "there. As a library it works, and writes to $HD_ARTIFACTS or .artifacts "
                         "in the current folder")


def artifacts_root() -> Path:
    """Where runs write: $HD_ARTIFACTS, or .artifacts in the repository, or, where the package is
    installed without one, in the current folder. Raises InputError for the home of an unknown user.
    """
    chosen = os.environ.get("HD_ARTIFACTS")
    if not chosen:
        return (ROOT if is_checkout() else Path.cwd()).resolve() / ".artifacts"
    try:
        return Path(chosen).expanduser().resolve()
    except RuntimeError:
        raise InputError(f"HD_ARTIFACTS is {chosen!r}, but there is no such home folder; give the "
                         "whole path") from None


def package_digest() -> str:
    """sha256 over the package's own modules, in its folders too: the code that decides a result."""
    modules = {path.relative_to(ROOT).as_posix(): sha256_of(path)
               for path in sorted((ROOT / "hd").rglob("*.py"))}
    return _digest_of(modules)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """write(temporary path), then fsync and rename: the file appears whole or not at all.

    Raises InputError in one line when the folder cannot be written or the disk is full.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with open(aside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileNotFoundError) and not aside.exists() and path.parent.exists():
            raise
        raise cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> InputError:
    """The one line that says why a file or folder could not be written, and what helps."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError) and (place := _of_someone_else(path)):
        return InputError(f"cannot write {shown(path)}: {reason}: {shown(place)} belongs to user "
                          f"{_owner(place)}; ask them to let you write there (chmod -R g+w, and "
                          f"umask 002 from then on), or set HD_ARTIFACTS to a folder of your own")
    return InputError(f"cannot write {shown(path)}: {reason}; free space or set HD_ARTIFACTS to a "
                      f"folder that can be written")


def _of_someone_else(path: Path) -> Path | None:
    """The file, or the folder around it, that may not be written because another user owns it."""
    if not hasattr(os, "geteuid"):  # Windows
        return None
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            if place.stat().st_uid != os.geteuid() and not os.access(place, os.W_OK):
                return place
            if place.is_dir():
                return None
    return None


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


@contextlib.contextmanager
def exclusive(path: Path, *, lock: Path | None = None) -> Iterator[None]:
    """Only one process works on this file or folder; a second waits shortly, then InputError.

    lock: the file that is locked, and that stays: .<name>.lock beside path unless given.
    """
    lock = lock or path.with_name(f".{path.name}.lock")
    check_writable(lock.parent)
    held = FileLock(lock)
    try:
        held.acquire(timeout=LOCK_PATIENCE)
    except Timeout:
        raise InputError(f"another process is working on {shown(path)}; wait for it or stop it, "
                         f"then give the same command again") from None
    except OSError as error:
        raise cannot_write(lock, error) from None
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses to write there, a file or a whole tree, is one line."""
    try:
        yield
    except shutil.Error as error:  # of shutil.copytree: (from, to, reason) of each file
        raise cannot_write(path, OSError(str(error.args[0][0][2]).partition(": ")[0])) from None
    except OSError as error:
        raise cannot_write(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Atomic text file, UTF-8."""
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Atomic JSON file."""
    write_text(path, json.dumps(content, indent=1, default=dict) + "\n")


def write_record(path: Path, content: dict) -> None:
    """Atomic JSON that also holds its own sha256: read_record notices any later change."""
    write_json(path, {**content, "sha256_of_record": _digest_of(content)})


def read_record(path: Path) -> dict:
    """What write_record wrote; raises ValueError when it was damaged since."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("sha256_of_record", "") != _digest_of(content):
        raise ValueError(f"{shown(path)} is damaged")
    return content


def _digest_of(content: dict) -> str:
    text = json.dumps(content, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


def write_array(path: Path, array: np.ndarray) -> None:
    """Atomic .npy file."""
    write_atomically(path, lambda aside: np.save(aside, array, allow_pickle=False))


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes; read again only when the file has changed."""
    state = os.stat(path)
    return _sha256(str(path), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=256)
def _sha256(path: str, *state) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# As it was when this process imported it: what is edited later is not what runs here.
CODE = package_digest()


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made below the folder."""
    write_text(folder / ".writable", "")
    with contextlib.suppress(OSError):
        (folder / ".writable").unlink()


def shown(path: Path) -> str:
    """The path as users should see it: relative to the repository or the artefact root."""
    for base, prefix in ((ROOT, ""), (artifacts_root(), "$HD_ARTIFACTS/")):
        with contextlib.suppress(ValueError):
            return prefix + Path(path).resolve().relative_to(base).as_posix()
    return Path(path).name
