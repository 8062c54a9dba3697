"""Fixtures that every test may use. All tests run on CPU and offline."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_in_processes import kill_leftovers

os.environ.pop(
    "CI", None
)  # there, pytest spells out each difference in full: for two files of weights that takes hours
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("COLUMNS", "160")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks on a busy machine: threads would wait for each other

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder of this run, which its worker processes and all jobs share: not the user's."""
    if not hasattr(config, "workerinput"):
        caches = tempfile.TemporaryDirectory(prefix="flowers-cache-")
        os.environ["XDG_CACHE_HOME"] = caches.name
        config.add_cleanup(caches.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some minutes' worth of tests run where there is time for them: under .ci/run."""
    if not os.environ.get("FLOWERS_SLOW_TESTS"):
        skip = pytest.mark.skip(reason="slow; set FLOWERS_SLOW_TESTS=1")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """A test that fails while its jobs run takes them with it."""
    yield
    kill_leftovers()


@pytest.fixture(scope="session")
def flowers102() -> Path:
    """Real photos: train/, valid/, photos/ of Oxford 102, where the checkout has them beside it."""
    folder = Path(os.environ.get("FLOWERS102", ROOT.parent / "shared" / "flowers102"))
    if not (folder / "train").is_dir():
        pytest.skip("the real photos are not here; set FLOWERS102 to a folder with train/, valid/ and photos/")
    return folder


@pytest.fixture(scope="session")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn set: 4 species with 8 train, 4 valid and 4 test images each, 96 px."""
    from flowers.datasets.drawn import draw_garden

    folder = tmp_path_factory.mktemp("sample") / "garden"
    draw_garden(folder, species=4, train=8, valid=4, test=4, image_size=96, seed=0)
    return folder
