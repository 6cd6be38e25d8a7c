"""hd.run.machine: memory that a training keeps, and what else a machine says of itself."""

import pytest
import torch

from hd import config
from hd.run import machine, runs, training

MEGABYTES = 100
needs_glibc = pytest.mark.skipif(machine._glibc() is None, reason="needs glibc")


def faults_of_blocks(count=10):
    """How often the system must find a page for large blocks, each filled and freed."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(MEGABYTES * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_freed_memory_stays_inside_and_goes_back_to_the_system_after():
    at_first, outside = machine.resident_memory_mb(), faults_of_blocks()
    with machine.kept_memory():
        # A small block may take a bit of the first large one's place: the next one needs another.
        inside, kept = faults_of_blocks(), machine.resident_memory_mb() - at_first
    assert inside < 0.5 * outside
    assert kept > 0.9 * MEGABYTES
    assert machine.resident_memory_mb() - at_first < 0.1 * MEGABYTES


@needs_glibc
def test_what_is_kept_and_unused_can_be_given_back_inside():
    at_first = machine.resident_memory_mb()
    with machine.kept_memory():
        faults_of_blocks(1)
        assert machine.resident_memory_mb() - at_first > 0.9 * MEGABYTES
        machine.give_back_memory()
        assert machine.resident_memory_mb() - at_first < 0.1 * MEGABYTES


@needs_glibc
def test_memory_goes_back_when_training_fails_too():
    at_first = machine.resident_memory_mb()
    with pytest.raises(ZeroDivisionError), machine.kept_memory():
        faults_of_blocks(1)
        raise ZeroDivisionError
    assert machine.resident_memory_mb() - at_first < 0.1 * MEGABYTES


def test_without_glibc_nothing_is_kept_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(machine, "_glibc", lambda: None)
    with machine.kept_memory():
        machine.give_back_memory()
        assert torch.ones(3).sum() == 3


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_no_glibc(monkeypatch, error):
    def refuse(name):
        raise error("no such library")
    machine._glibc.cache_clear()
    monkeypatch.setattr(machine.ctypes, "CDLL", refuse)
    try:
        assert machine._glibc() is None
    finally:
        machine._glibc.cache_clear()


@needs_glibc
def test_training_keeps_memory_until_it_ends(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(machine._glibc(), "mallopt", lambda *option: asked.append(option))
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    model, run = torch.nn.Linear(2, 1), runs.Run("decoder", config.PROFILES["smoke"])
    keeping, usual = list(machine.KEEPING.items()), list(machine.USUAL.items())

    def loss(batch):
        assert asked == keeping
        return training.Loss(model(batch).square().mean())
    model.loss = loss
    training.train(model, lambda i: torch.ones(3, 2), run.cfg, run)
    assert asked == keeping + usual
