"""Photos at addresses: the rows of the same photos on a disk, whatever the server and the network do meanwhile."""

import http.server
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_job

from flowers import retries as retries_module
from flowers.config.predict import PredictConfig
from flowers.data import remote
from flowers.data.remote import address_of, read_address
from flowers.data.tables import read_rows
from flowers.errors import DataError, ImageError, UsageError
from flowers.prediction.predict import predict

fsspec = pytest.importorskip("fsspec", reason="pip install -e .[remote]")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job.make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(retries_module.time, "sleep", found.append)
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    tiny_job.make_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "cut.jpg").write_bytes((tmp_path / "photos" / "0001.jpg").read_bytes()[:300])
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "photos" / "notes.txt").write_bytes(b"no photo")
    return tmp_path / "photos"


@pytest.fixture
def bucket(photos: Path) -> Iterator[str]:
    """The photos in fsspec's file system in memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{photos}/", "/bucket/", recursive=True)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def serve(photos: Path) -> Iterator[Callable[[dict[str, list[int]]], str]]:
    """Starts a web server on the photos; the paths named are first answered by these errors, one a request."""
    servers = []

    def start(errors: dict[str, list[int]]) -> str:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object):
                super().__init__(*args, directory=str(photos))

            def send_head(self) -> object:
                if left := errors.get(self.path):
                    self.send_error(left.pop(0))
                    return None
                return super().send_head()

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def rows(bundle: Path, out: Path, *inputs: str | Path, **flags: object) -> dict[str, dict]:
    config = PredictConfig(checkpoint=bundle, input=inputs, output=out, engine="torch", precision="float32", **flags)
    predict(config)
    return {row["path"]: row for row in read_rows(out)}


def answer(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "path"}


def test_a_bucket_gives_the_rows_of_its_folder(bundle: Path, photos: Path, bucket: str, tmp_path: Path) -> None:
    local = rows(bundle, tmp_path / "local.csv", photos)
    found = rows(bundle, tmp_path / "remote.csv", bucket, report=True)
    assert len(local) == 6
    assert {path.removeprefix("memory:///bucket/"): answer(row) for path, row in found.items()} == {
        path: answer(row) for path, row in local.items()
    }
    assert rows(bundle, tmp_path / "remote.csv", bucket, report=True) == found, "an equal job finds it finished"
    assert (tmp_path / "remote.html").read_text().count("data:image/jpeg") >= 5


def test_a_list_of_a_server_has_a_row_a_line_whatever_fails(
    bundle: Path, photos: Path, serve: Callable, tmp_path: Path, waited: list[float]
) -> None:
    pytest.importorskip("aiohttp", reason="pip install -e .[remote]")
    url = serve({"/0001.jpg": [503, 500], "/0002.jpg": [403], "/0004.jpg": [502] * 9})
    (photos / "list.txt").write_text(f"0001.jpg\n0002.jpg\n{url}/below/0000.jpg\n0004.jpg\ngone.jpg\ncut.jpg\n")
    local = rows(bundle, tmp_path / "local.csv", photos)
    found = rows(bundle, tmp_path / "remote.csv", f"{url}/list.txt")
    assert {path.removeprefix(f"{url}/"): (row["status"], row["error"]) for path, row in found.items()} == {
        "0001.jpg": ("ok", ""),
        "0002.jpg": ("error", "the server answers 403"),
        "0004.jpg": ("error", found[f"{url}/0004.jpg"]["error"]),
        "below/0000.jpg": ("ok", ""),
        "cut.jpg": ("error", "truncated JPEG"),
        "gone.jpg": ("error", "file not found"),
    }
    assert "502" in found[f"{url}/0004.jpg"]["error"]
    assert answer(found[f"{url}/0001.jpg"]) == answer(local["0001.jpg"])
    assert set(waited) >= set(retries_module.WAITS_S)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "no answer in time"),
        (
            b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /\r\n\r\n",
            "the server redirects without end",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -9\r\n\r\n", "ClientResponseError"),
    ],
    ids=["stalls", "redirects", "malformed"],
)
def test_a_server_that_is_broken_is_told_and_not_waited_for(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="pip install -e .[remote]")
    done = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():  # the request
                pass
            self.wfile.write(answer)
            if b"half" in answer:
                done.wait(60)

    monkeypatch.setattr(remote, "_SILENCE_S", 0.2)
    remote._of_protocol.cache_clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ImageError, match=words):
            read_address(f"http://127.0.0.1:{server.server_address[1]}/a.jpg")
        done.set()
        server.shutdown()
    remote._of_protocol.cache_clear()


def test_a_list_on_the_disk_may_name_addresses(bundle: Path, photos: Path, bucket: str, tmp_path: Path) -> None:
    (photos / "list.txt").write_text(f"{bucket}/0001.jpg\n0002.jpg\n")
    found = rows(bundle, tmp_path / "out.csv", photos / "list.txt")
    assert {path: row["status"] for path, row in found.items()} == {f"{bucket}/0001.jpg": "ok", "0002.jpg": "ok"}


def test_photos_are_read_ahead_many_at_a_time(bundle: Path, bucket: str, tmp_path: Path, monkeypatch) -> None:
    all_begun = threading.Barrier(6, timeout=30)
    monkeypatch.setattr(
        "flowers.prediction.inputs.read_address", lambda *args: all_begun.wait() * 0 or read_address(*args)
    )
    found = rows(bundle, tmp_path / "out.csv", bucket, workers=1)
    assert [row["status"] for row in found.values()].count("ok") == 5


def test_what_cannot_be_listed_is_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(source: str) -> list:
        return list(remote.list_address(source, remote.Choice()))

    assert address_of(Path("s3://bucket/x")) == "s3://bucket/x"
    assert address_of(Path("photos/x")) is None
    for source, words in (
        (f"{bucket}/gone/list.txt", "file not found"),
        ("memory://bucket/a.tar", "archives are read from a disk only"),
        ("nosuch://x/y", "nosuch"),
    ):
        with pytest.raises(DataError, match=words):
            listed(source)
    with pytest.raises(ImageError, match="file not found"):
        read_address(f"{bucket}/gone.jpg")
    remote._of_protocol.cache_clear()
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DataError, match=r"memory://bucket: addresses need the extra remote: pip install flo"):
        listed(bucket)


def test_photos_at_addresses_are_not_sorted_into_folders(bundle: Path, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--copy-to, --link-to: photos at addresses"):
        rows(bundle, tmp_path / "out.csv", bucket, copy_to=tmp_path / "sorted")
