"""The house: imports go down only, models know no runs, the listing shows the data flow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hd"

# From the ground up. A folder is one layer; of the modules on top of each other, the pipeline, each
# is a layer of its own, in the order in which a frame becomes an action.
LAYERS = (
    "ablations", "config", "run",
    "atari", "collection", "replay", "windows", "quantization", "patches", "encoder",
    "tokenizer", "decoder", "transformer", "two_hot", "world_model", "place_model", "imagination",
    "policy", "play", "experience", "agent",
    "measure", "stages", "report", "audit", "book", "bench", "__main__",
)
# What takes arrays: whoever has some can train it without a run, a file or a game's name.
MODELS = ("quantization", "patches", "encoder", "tokenizer", "decoder",
          "transformer", "two_hot", "world_model", "place_model", "imagination", "policy")
# What a model may know of how it is kept: it hands a run on to the training loop, and draws.
OF_RUNS = {"Run", "rng_for", "seed_everything", "progress"}
MAX_FUNCTION_LINES = 60


def modules():
    """Every module but the folders' own, by its dotted name below hd."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
            for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__"}


MODULES = modules()


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path):
    """(module below hd, name taken from it or "") of every import of hd anywhere in the file."""
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            words = name.split(".")
            if words[0] != "hd":
                continue
            for length in (2, 1):
                module = ".".join(words[1:1 + length])
                if module in MODULES:
                    yield module, ".".join(words[1 + length:])
                    break


def layer_of(module):
    return LAYERS.index(module.partition(".")[0])


def test_every_module_lies_in_a_layer():
    assert {module.partition(".")[0] for module in MODULES} == set(LAYERS)


def test_about_twenty_files_show_how_a_frame_becomes_an_action():
    on_top = [module for module in MODULES if "." not in module]
    assert len(on_top) <= 22


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    above = {other for other, _ in imported(MODULES[module])
             if layer_of(other) > layer_of(module)
             or (layer_of(other) == layer_of(module) and "." not in module and other != module)}
    assert not above, f"{module} may not import {sorted(above)}"


def test_no_folder_imports_in_a_circle():
    open_ones = {module: {other for other, _ in imported(path)} - {module}
                 for module, path in MODULES.items()}
    while free := [module for module, needs in open_ones.items() if not needs & set(open_ones)]:
        for module in free:
            del open_ones[module]
    assert not open_ones, f"these import each other: {sorted(open_ones)}"


@pytest.mark.parametrize("module", MODELS)
def test_models_know_no_runs_files_or_stages(module):
    for other, name in imported(MODULES[module]):
        if other == "run.runs":
            assert name in OF_RUNS, f"{module} takes {name or 'all'} of {other}"
        elif other.startswith("run."):
            assert other in ("run.training", "run.machine"), f"{module} imports {other}"


def test_only_stages_and_who_stands_above_open_runs():
    opens = re.compile(r"\bruns\.(require|finished|load_model|cached_array|start)\b")
    for module, path in MODULES.items():
        if LAYERS.index("atari") <= layer_of(module) < LAYERS.index("stages"):
            found = opens.findall(path.read_text(encoding="utf-8"))
            assert not found or module in ("collection", "agent"), f"{module} opens runs: {found}"


def test_only_the_figures_import_matplotlib():
    users = {module for module, path in MODULES.items()
             if re.search(r"^\s*(from|import) matplotlib", path.read_text("utf-8"), re.M)}
    assert users == {"report.figures"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module):
    assert ast.get_docstring(tree(MODULES[module])), f"{module} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_functions_stay_short(module):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {node.name: node.end_lineno - node.lineno + 1
               for node in ast.walk(tree(MODULES[module])) if isinstance(node, functions)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_list_of_the_packages_files_overlooks_its_folders():
    flat = re.compile(r"""["'](hd/)?\*\.py["']""")
    for path in (*MODULES.values(), ROOT / "Snakefile", ROOT / "Makefile"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not flat.search(line) or "rglob" in line, f"{path.name}: {line.strip()}"
