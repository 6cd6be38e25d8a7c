"""The project as a whole: its files agree with each other and the package keeps its shape."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hd.report import published
from hd.run.runs import TABLE_COMPANIONS
from hd.run.weights import TREE_BYTES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

CHECKOUT_BYTES, FILE_BYTES = 30_000_000, 3_000_000
LARGE_KINDS = {".safetensors"}  # published weights have a limit of their own

# sys_platform, platform_system, os_name, platform_machine
SYSTEMS = (
    ("linux", "Linux", "posix", "x86_64"),
    ("linux", "Linux", "posix", "aarch64"),
    ("darwin", "Darwin", "posix", "arm64"),
    ("win32", "Windows", "nt", "AMD64"),
)
PYTHONS = ("3.10.13", "3.11.7", "3.12.1", "3.13.0")


def environments():
    """Marker environments of every supported Python on every supported system."""
    for system, python in itertools.product(SYSTEMS, PYTHONS):
        sys_platform, platform_system, os_name, platform_machine = system
        yield {
            "sys_platform": sys_platform,
            "platform_system": platform_system,
            "os_name": os_name,
            "platform_machine": platform_machine,
            "python_full_version": python,
            "python_version": python.rpartition(".")[0],
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        }


def applies(requirement, environment):
    return requirement.marker is None or requirement.marker.evaluate(environment)


def declared_dependencies():
    project = PYPROJECT["project"]
    return [
        Requirement(line)
        for line in project["dependencies"] + project["optional-dependencies"]["dev"]
    ]


def lock_lines():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def locked_requirements(environment):
    """Every lock line that pip would follow there: {canonical name: [requirements]}."""
    found = {}
    for requirement in map(Requirement, lock_lines()):
        if applies(requirement, environment):
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def project_files():
    """Files that are in git or about to be; skips where git or its folder is missing."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git working tree")
    paths = [ROOT / name for name in listing.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def python_files():
    return [path for path in project_files() if path.suffix == ".py"]


def fenced_commands(markdown):
    """Lines inside fenced blocks, without prompt and trailing comment."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    lines = itertools.chain.from_iterable(block.splitlines() for block in blocks)
    return [re.sub(r"^\$ |\s+#.*$", "", line).strip() for line in lines]


def test_conda_environment_installs_exactly_the_package_with_its_dev_extra():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip_lists = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip_lists == [["-e .[dev]"]]
    assert environment["name"] == PYPROJECT["project"]["name"]


def test_conda_environment_brings_nothing_but_a_supported_python_and_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    names = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    python = Requirement(names[0].replace("=", "=="))
    assert (python.name, names[1:]) == ("python", ["pip"])
    assert any(python.specifier.contains(version.rpartition(".")[0]) for version in PYTHONS)


def test_every_dependency_is_pinned_exactly_and_within_its_declared_range():
    for environment in environments():
        locked = locked_requirements(environment)
        for declared in declared_dependencies():
            if not applies(declared, environment):
                continue
            pins = locked.get(canonicalize_name(declared.name), [])
            assert pins, f"{declared.name} is not in requirements.lock for {environment}"
            version = str(pins[0].specifier).removeprefix("==")
            assert declared.specifier.contains(version, prereleases=True), f"{declared}: {version}"


def test_lock_gives_one_exact_version_of_each_package_on_every_python_and_system():
    for environment in environments():
        for name, pins in locked_requirements(environment).items():
            assert len(pins) == 1, f"{name} has several versions for {environment}"
            assert re.fullmatch(r"==[^*,]+", str(pins[0].specifier)), f"{pins[0]} is not exact"


def test_lock_has_the_build_backend_so_that_installing_fetches_no_build_environment():
    for environment in environments():
        locked = locked_requirements(environment)
        for needed in map(Requirement, PYPROJECT["build-system"]["requires"]):
            version = str(locked[canonicalize_name(needed.name)][0].specifier).removeprefix("==")
            assert needed.specifier.contains(version)


def test_lock_names_no_gpu_library_no_local_build_and_no_host():
    for line in lock_lines():
        assert not re.match(r"(nvidia|cuda|triton)", line, flags=re.IGNORECASE), line
        assert "+" not in line, f"a local build exists on one machine only: {line}"
        assert not line.startswith("-"), f"an option ties the lock to a place: {line}"
        assert not re.search(r"://|@|\\|\s/|file:", line), f"a place instead of a version: {line}"


def test_ci_runs_exactly_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = {line for line in fenced_commands(readme) if re.match(r"make test(\s|$)", line)}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()
    assert documented == {script[-1].removeprefix("exec ")}


def test_what_is_cited_is_the_package_the_book_and_the_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    book = yaml.safe_load((ROOT / "book" / "_config.yml").read_text(encoding="utf-8"))
    project = PYPROJECT["project"]
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert {key: cited[key] for key in ("title", "abstract", "version", "license")} == {
        "title": book["title"], "abstract": project["description"],
        "version": project["version"], "license": project["license"]}
    (author,) = cited["authors"]
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
    front = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert f"title  = {{{cited['title']}}}" in front and author["name"] in front


def test_the_top_level_holds_what_a_reader_looks_for_and_what_tools_need():
    for_readers = {"book", "hd", "figures", "results", "tests", "environment.yml", "README.md"}
    for_tools = {"CITATION.cff", "LICENSE", "Makefile", "Snakefile", "pyproject.toml",
                 "requirements.lock", "workflow"}
    found = {path.relative_to(ROOT).parts[0] for path in project_files()}
    assert {name for name in found if not name.startswith(".")} == for_readers | for_tools


def test_every_make_target_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    commands = [line.split() for line in fenced_commands(readme) if line.startswith("make ")]
    named = {word for words in commands for word in words[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert named <= targets


def test_the_checkout_is_light_enough_to_travel():
    sizes = {path: path.stat().st_size for path in project_files()}
    assert sum(sizes.values()) < CHECKOUT_BYTES
    assert [path.name for path, size in sizes.items()
            if size > FILE_BYTES and path.suffix not in LARGE_KINDS] == []
    weights = sum(size for path, size in sizes.items() if path.suffix in LARGE_KINDS)
    assert weights <= TREE_BYTES


def test_every_published_figure_is_shown_and_every_table_beside_another_is_read():
    figures = {path for path in project_files() if path.is_relative_to(published.FIGURES)}
    assert figures == published.shown()
    beside = [f"{path.parent.name}/{path.name}" for path in (ROOT / "results").rglob("*.csv")
              if path.stem.endswith(TABLE_COMPANIONS)]
    assert beside and [place for place in beside if not published.is_read_beside(place)] == []


def test_the_readme_names_every_module_and_folder_of_the_package():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    described = set(re.findall(r"^  ([\w.]+)/? ", tree, flags=re.MULTILINE))
    wanted = {path.name for path in (ROOT / "hd").iterdir()} - {"__init__.py", "__pycache__"}
    assert described == wanted


def test_no_file_mentions_a_path_of_a_developers_machine():
    private = re.compile(rb"(?<![\w.~])/(?:work|root|home|Users)/|[A-Z]:\\+Users|[.][.]/shared\b")
    for path in project_files():
        content = path.read_bytes()
        is_text = b"\0" not in content[:8192]
        if is_text and "_vendor" not in path.parts:
            found = private.search(content)
            assert not found, f"{path.relative_to(ROOT)} contains {found.group().decode()}"


def test_all_python_files_parse_under_the_oldest_supported_grammar():
    for path in python_files():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
