"""A small file takes little memory and time of the one decoder, whatever it asks for."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hostile_files import HostileFile, hostile_files
from odd_files import quarters

MEMORY_BYTES, CPU_S = 512 << 20, 8
"""A quarter of the ceiling of ``flowers.data.formats.limits``: these files have at most 5 MB."""
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the decoder says of each file, asked in a process that may not take more than that."""
    folder = tmp_path_factory.mktemp("hostile")
    for file in hostile_files():
        (folder / file.name).write_bytes(file.data)
    ran = subprocess.run(
        [sys.executable, __file__, folder], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)}
    )
    assert ran.returncode == 0, f"after {ran.stdout.splitlines()[-1:]}: {ran.stderr}"
    assert ran.stderr == "", "libraries say nothing on the screen"
    return dict(json.loads(line) for line in ran.stdout.splitlines())


@pytest.mark.parametrize("file", hostile_files(), ids=lambda file: file.name)
def test_small_file_takes_little(file: HostileFile, answers: dict[str, str | None]):
    assert answers[file.name] == file.reason


def decode_all(folder: Path) -> None:
    """Decode the files of a folder within the limits, and write what comes of each."""
    from flowers.data.images import decode_image
    from flowers.errors import ImageError

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_BYTES, resource.RLIM_INFINITY))
    for path in sorted(folder.iterdir()):
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_S, resource.RLIM_INFINITY))
        try:
            image = decode_image(path).image
            same = image.shape == quarters().shape and np.abs(image.astype(int) - quarters()).max() <= 4
            print(json.dumps([path.name, None if same else "another picture"]), flush=True)
        except ImageError as error:
            print(json.dumps([path.name, str(error)]), flush=True)


if __name__ == "__main__":
    decode_all(Path(sys.argv[1]))
