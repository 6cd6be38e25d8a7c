"""Download the wheels that a GPU machine lacks, for its Python, into a folder that travels.

    python workflow/gpu/wheels.py

What pyproject.toml asks for, in the versions of requirements.lock, without what no campaign needs
(LEFT_OUT) and what the machine has (on_the_machine.txt). Refuses over 40 MB in one line.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent / "wheels"
LIMIT_MB = 40.0
LEFT_OUT = {
    "torch": "the machine has its own, with its GPU's libraries",
    "jupyter-book": "the book is built at home",
    "snakemake": "a campaign is no sweep",
    "wandb": "training goes on untracked without it",
    "imageio-ffmpeg": "68 MB; pages show no video without it",
}
# pip takes a wheel only for a C library that it is told of by name.
PLATFORMS = ("manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64",
             *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 29)))


class Refused(Exception):
    """One line that says why there are no wheels."""


def main(words: list[str] | None = None) -> int:
    """Make the folder anew; returns the exit code, 2 where it is refused."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, default=FOLDER, help="a folder, made anew")
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--brought", type=Path,
                        default=Path(__file__).with_name("on_the_machine.txt"),
                        help="a list of what the machine has, a package a line")
    parser.add_argument("--limit-mb", type=float, default=LIMIT_MB)
    args = parser.parse_args(words)
    try:
        wheels = download(args.to, args.python, names_in(args.brought), args.limit_mb)
    except Refused as refused:
        print(f"wheels: {refused}", file=sys.stderr)
        return 2
    print(f"{len(wheels)} wheels for Python {args.python}, {size_mb(wheels):.1f} MB; left out:")
    for name, why in LEFT_OUT.items():
        print(f"  {name}: {why}")
    return 0


def download(folder: Path, python: str, brought: Iterable[str], limit_mb: float) -> list[Path]:
    """The wheels, in folder: what is asked for, then what that asks for, until nothing is new.

    Raises Refused for a package without a version or a wheel, and over limit_mb megabytes; the
    folder is then gone.
    """
    pins, brought, done = locked(python), set(brought), set()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        asked = list(needed(python))
        while new := {canonicalize_name(one.name) for one in asked} - done - brought - {*LEFT_OUT}:
            if unknown := sorted(new - pins.keys()):
                raise Refused(f"requirements.lock has no version of {', '.join(unknown)}")
            _fetch(folder, python, [f"{name}=={pins[name]}" for name in sorted(new)])
            done |= new
            wheels = sorted(folder.glob("*.whl"))
            _check_size(wheels, limit_mb)
            asked = [one for wheel in wheels if names_of([wheel]) <= new
                     for one in required_by(wheel, python)]
    except Refused:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return wheels


def needed(python: str) -> Iterator[Requirement]:
    """The run-time dependencies of pyproject.toml on the machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from _that_apply(project["dependencies"], python)


def required_by(wheel: Path, python: str) -> Iterator[Requirement]:
    """What a wheel's own metadata asks for on the machine, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        path = next(name for name in archive.namelist()
                    if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        lines = archive.read(path).decode("utf-8").partition("\n\n")[0].splitlines()
    yield from _that_apply((line.partition(":")[2] for line in lines
                            if line.startswith("Requires-Dist:")), python)


def locked(python: str) -> dict[str, str]:
    """Name -> version of requirements.lock on the machine."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = _that_apply((line for line in lines if line and not line.startswith("#")), python)
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def names_in(path: Path) -> set[str]:
    """The packages of a list, one a line; # begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Refused(f"{path.name} cannot be read: {error.strerror}") from None
    return {canonicalize_name(name) for line in lines if (name := line.partition("#")[0].strip())}


def names_of(wheels: Iterable[Path]) -> set[str]:
    """The packages that wheels hold."""
    return {parse_wheel_filename(wheel.name)[0] for wheel in wheels}


def size_mb(wheels: Iterable[Path]) -> float:
    """Of all together, in MB of a million bytes."""
    return sum(wheel.stat().st_size for wheel in wheels) / 1e6


def _that_apply(lines: Iterable[str], python: str) -> Iterator[Requirement]:
    """The requirements whose markers hold on Linux x86-64 with that Python. (pip would judge them
    by the Python that runs it.)"""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "os_name": "posix",
               "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64",
               "implementation_name": "cpython", "platform_python_implementation": "CPython",
               "extra": ""}
    for line in lines:
        requirement = Requirement(line.strip())
        if requirement.marker is None or requirement.marker.evaluate(machine):
            yield requirement


def _fetch(folder: Path, python: str, pins: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
               "--dest", str(folder), *pins]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Refused(f"pip found no wheel for Python {python}: {(errors or ['no reason'])[-1]}")


def _check_size(wheels: list[Path], limit_mb: float) -> None:
    if size_mb(wheels) <= limit_mb:
        return
    largest = sorted(wheels, key=lambda wheel: -wheel.stat().st_size)[:3]
    named = ", ".join(f"{names_of([one]).pop()} {size_mb([one]):.0f} MB" for one in largest)
    raise Refused(f"over {limit_mb:g} MB ({named}): add what the machine has to "
                  f"on_the_machine.txt")


if __name__ == "__main__":
    sys.exit(main())
