"""What every test relies on: no network, few threads, fixed seeds, a clean working tree."""

import os
import random
import signal
import tempfile
from pathlib import Path

os.environ.pop("HD_DINOV2", None)  # tables have other rows where it is set
# Read by libraries while they are imported, so they cannot wait for a fixture.
os.environ.update(
    MPLBACKEND="Agg",
    TQDM_DISABLE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)

import numpy as np
import pytest
import torch

NUM_THREADS = 2
SEED = 0


@pytest.fixture(scope="session", autouse=True)
def artifacts_folder():
    """Where the runs of this session write, whatever HD_ARTIFACTS says outside.

    Set once, not for each test: a fixture or test that sets HD_ARTIFACTS itself keeps its own.
    """
    with (
        tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HD_ARTIFACTS", folder)
        yield Path(folder)


@pytest.fixture(autouse=True)
def fixed_seeds_and_threads():
    """Every test starts from the same random state, whatever ran before it."""
    torch.set_num_threads(NUM_THREADS)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


# ---- publishing how long tests end

def pytest_addoption(parser):
    parser.addoption("--publish", action="store_true",
                     help="write how long tests end to results/long-tests.csv (from a clean tree)")


def pytest_configure(config):
    # A shell's background job ignores Ctrl-C, and so would the processes that tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--publish"):
        config.pluginmanager.register(LongTests(config.rootpath))


class LongTests:
    """Keeps the outcome and the seconds of every long test, and publishes them at the end."""

    def __init__(self, root):
        from hd import config  # late: it takes seconds, which single tests can spare
        from hd.book import long_tests
        self.publisher, self.refused = long_tests, config.InputError
        self.root, self.collected, self.outcomes = root, [], {}
        self.commit = self.said = ""
        try:
            self.commit = self.publisher.tested_commit(root)
        except self.refused as error:
            self.said = str(error)

    @pytest.hookimpl(tryfirst=True)  # before -m and -k leave tests out
    def pytest_collection_modifyitems(self, items):
        self.collected = [item.nodeid for item in items if item.get_closest_marker("long")]

    def pytest_runtest_logreport(self, report):
        if report.nodeid not in self.collected:
            return
        outcome, seconds = self.outcomes.get(report.nodeid, ("passed", 0.0))
        if report.outcome != "passed" and outcome != "failed":
            outcome = report.outcome
        self.outcomes[report.nodeid] = outcome, seconds + report.duration

    def pytest_sessionfinish(self):
        if not self.commit or not self.outcomes:
            return
        try:
            if self.publisher.tested_commit(self.root) != self.commit:
                raise self.refused("another commit was checked out meanwhile")
            path = self.publisher.publish(self.outcomes, collected=self.collected, root=self.root)
            self.said = f"{path.relative_to(self.root).as_posix()} is written: commit it"
        except self.refused as error:
            self.said = str(error)

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"long tests: {self.said or 'none ran, nothing is published'}")
