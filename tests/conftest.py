"""What every test relies on: no network, few threads, fixed seeds, a clean working tree."""

import os
import random
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
