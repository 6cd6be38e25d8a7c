"""What nbval needs: a scratch folder for the runs, quiet progress bars, stages in order.

pytest --nbval --nbval-current-env book
"""

import atexit
import os
import shutil
import tempfile

# Kernels inherit the environment, so all of it is set before the first one starts.
if "HD_ARTIFACTS" not in os.environ:
    os.environ["HD_ARTIFACTS"] = tempfile.mkdtemp(prefix="hd-book-")
    atexit.register(shutil.rmtree, os.environ["HD_ARTIFACTS"], ignore_errors=True)
os.environ.update(TQDM_DISABLE="1", WANDB_MODE="offline", WANDB_SILENT="true")
os.environ.pop("HD_DINOV2", None)  # tables have more rows where it is set
os.environ.pop("MPLBACKEND", None)  # kernels choose the one that shows figures in the notebook
# Sums change in the last digits with the number of threads.
os.environ.update(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")

FOLDERS = ("pipeline", "report")


def pytest_collection_modifyitems(items):
    """Each pipeline notebook needs the one before it; the report reads tables."""
    def place(item):
        folder = item.path.parent.name
        return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS), item.path.name
    items.sort(key=place)
