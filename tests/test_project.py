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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Data flow, top down: a module may import only from those above it.
MODULES = (
    "ablations",
    "config",
    "metrics",
    "intervals",
    "storage",
    "machine",
    "runs",
    "training",
    "atari",
    "collection",
    "ram_policy",
    "replay",
    "probes",
    "quantization",
    "frames",
    "game_state",
    "negatives",
    "encoder",
    "embeddings",
    "seed_protocol",
    "dinov2",
    "tokenizer",
    "codes",
    "decoder",
    "pictures",
    "baselines",
    "transformer",
    "two_hot",
    "windows",
    "world_model",
    "imagination",
    "policy",
    "play",
    "predictions",
    "dreams",
    "control",
    "checks",
    "entropy_floor",
    "transfer",
    "stages",
    "tables",
    "benchmarks",
    "reference",
    "evidence",
    "goals",
    "verdicts",
    "representation_claims",
    "dynamics_claims",
    "claims",
    "ablation_tables",
    "weights",
    "publishing",
    "long_tests",
    "figures",
    "video",
    "notebooks",
    "building",
    "emulators",
    "synthetic",
    "flops",
    "opponents",
    "timing",
    "timed_stages",
    "memory",
    "benchmark",
    "__main__",
)
MAX_FUNCTION_LINES = 60

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


def package_modules():
    return sorted(path for path in (ROOT / "hd").rglob("*.py") if path.stem != "__init__")


def syntax_tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(path):
    """Dotted names a module of `hd` imports anywhere in it, relative ones resolved."""
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(part for part in ("hd" if node.level else "", node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_modules(path):
    """The modules of `hd` that a module of `hd` imports, by their short names."""
    parts = (name.split(".") for name in imported_names(path))
    return {word for name in parts if name[0] == "hd" for word in name[1:3] if word in MODULES}


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


def test_every_make_target_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    commands = [line.split() for line in fenced_commands(readme) if line.startswith("make ")]
    named = {word for words in commands for word in words[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert named <= targets


def test_no_file_mentions_a_path_of_a_developers_machine():
    private = re.compile(rb"(?<![\w.~])/(?:work|root|home|Users)/|[A-Z]:\\+Users|[.][.]/shared\b")
    for path in project_files():
        content = path.read_bytes()
        is_text = b"\0" not in content[:8192]
        if is_text and "_vendor" not in path.parts:
            found = private.search(content)
            assert not found, f"{path.relative_to(ROOT)} contains {found.group().decode()}"


def test_every_module_has_its_place_in_the_import_order():
    without_place = {path.stem for path in package_modules()} - {"__init__", *MODULES}
    assert not without_place, f"give {sorted(without_place)} a place in MODULES"


@pytest.mark.parametrize("path", package_modules(), ids=lambda path: path.stem)
def test_a_module_imports_only_from_those_above_it(path):
    above = set(MODULES[: MODULES.index(path.stem)]) if path.stem in MODULES else set()
    below = imported_modules(path) - above
    assert not below, f"{path.name} may not import {sorted(below)}"


def test_only_the_module_of_figures_imports_matplotlib():
    users = {
        path.stem
        for path in package_modules()
        if any(name.split(".")[0] == "matplotlib" for name in imported_names(path))
    }
    assert users == {"figures"}


@pytest.mark.parametrize("path", package_modules(), ids=lambda path: path.stem)
def test_a_module_says_what_it_is_for(path):
    assert ast.get_docstring(syntax_tree(path)), f"{path.name} has no docstring"


@pytest.mark.parametrize("path", package_modules(), ids=lambda path: path.stem)
def test_functions_stay_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, functions)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_all_python_files_parse_under_the_oldest_supported_grammar():
    for path in python_files():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))
