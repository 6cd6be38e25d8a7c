"""Threads that wait let other programs work: what `import hd` settles before torch is loaded."""

import json
import os
import subprocess
import sys

import pytest

from hd.run.storage import ROOT

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def child(code, **settings):
    """Run code in a new Python with no such settings but the given; returns what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in WAITING}
    return subprocess.run([sys.executable, "-c", code], env={**env, **settings}, cwd=ROOT,
                          capture_output=True, text=True, check=True, timeout=300)


def settings_after(code, **settings):
    code += f"; import json, os; print(json.dumps([os.environ.get(x) for x in {WAITING}]))"
    return dict(zip(WAITING, json.loads(child(code, **settings).stdout)))


def test_importing_hd_lets_waiting_threads_sleep():
    assert settings_after("import hd") == {"GOMP_SPINCOUNT": "1500", "OMP_WAIT_POLICY": None,
                                           "KMP_BLOCKTIME": None}


def test_the_openmp_that_torch_brings_reads_the_setting():
    said = child("import hd, torch", OMP_DISPLAY_ENV="verbose").stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this torch does not use libgomp")
    assert "GOMP_SPINCOUNT = '1500'" in said


@pytest.mark.parametrize(("name", "value"), [
    ("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "5")])
def test_what_the_user_has_set_stays_and_nothing_is_added(name, value):
    assert settings_after("import hd", **{name: value}) == {**dict.fromkeys(WAITING), name: value}


def test_torch_that_was_there_first_is_left_alone():
    assert settings_after("import torch, hd") == dict.fromkeys(WAITING)


def test_processes_that_hd_starts_inherit_the_setting():
    code = ("import hd, subprocess, sys; print(subprocess.run([sys.executable, '-c', "
            "'import os; print(os.environ[\"GOMP_SPINCOUNT\"])'], capture_output=True, "
            "text=True).stdout)")
    assert child(code).stdout.split() == ["1500"]


def test_importing_hd_alone_loads_no_library():
    loaded = child("import hd, sys; print('numpy' in sys.modules, 'torch' in sys.modules)")
    assert loaded.stdout.split() == ["False", "False"]
