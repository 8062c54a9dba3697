"""The exported site in a browser: it answers as prediction does, without a server after the first visit."""

import base64
import contextlib
import csv
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_job
from color_profiles import P3_PRIMARIES, rgb_profile, with_profile
from odd_files import FINE, encode, quarters
from pictures import photo
from test_pages import contrast, luminance

from flowers.config.export import ExportConfig
from flowers.config.predict import PredictConfig
from flowers.data.folders import ClassIndex
from flowers.data.preprocessing import Preprocessing
from flowers.errors import UsageError
from flowers.exports.export import export
from flowers.exports.web import site as web_site
from flowers.exports.web.runtime import find_runtime
from flowers.prediction.predict import predict

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="pip install -e .[export]")

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from models import quick_bundle  # noqa: E402

WAIT_MS = 60_000
CLASSES = ClassIndex(("1", "10", "2", "a b"), ("daisy", "<img src=x onerror=alert(1)>", "tulip", 'é, "t"'))
PROB_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos as people have them: in folders, turned by EXIF, large, clear, grey, of wide gamut, cut, and no photos."""
    folder = tmp_path_factory.mktemp("photos")
    tiny_job.make_photos(folder, 4)
    large = encode(photo(1500, 2100, seed=1), "JPEG", **FINE)
    for orientation in range(1, 9):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes((0, orientation, 0, 0)) + bytes(4)
        turned = encode(np.kron(quarters(), np.ones((2, 2, 1), np.uint8)), "JPEG", exif=exif, **FINE)
        (folder / f"turned {orientation}.jpg").write_bytes(turned)
    clear = np.dstack([photo(90, 70, seed=2), np.full((90, 70), 255, np.uint8)])
    clear[20:60, 20:50, 3] = 0
    (folder / "large, and = odd.jpg").write_bytes(large)
    (folder / "clear.png").write_bytes(encode(clear, "PNG"))
    (folder / "grey.png").write_bytes(encode(photo(50, 60, seed=3)[:, :, 0], "PNG"))
    wide_gamut = photo(36, 48, seed=4)  # of the size at which it is converted
    (folder / "display p3.png").write_bytes(with_profile(wide_gamut, "PNG", rgb_profile(P3_PRIMARIES)))
    (folder / "cut.jpg").write_bytes(large[: len(large) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def site(browser: object, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        find_runtime(None)
    except UsageError as error:
        pytest.skip(f"no runtime: {error}")
    folder = tmp_path_factory.mktemp("web")
    bundle = tiny_job.make_bundle(folder / "bundle", CLASSES, model="timm/test_resnet")
    examples = folder / "examples" / "10"
    tiny_job.make_photos(examples, 1)
    assert (
        export(ExportConfig(folder / "site", bundle, "web", check_images=photos, class_examples=examples.parent)) == 0
    )
    return folder / "site"


@pytest.fixture
def serve(site: Path) -> Iterator[Callable[[], tuple[str, subprocess.Popen]]]:
    """Starts ``python -m http.server`` on the site: its address and process."""
    servers = []

    def start(folder: Path = site) -> tuple[str, subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}/", servers[-1]
            time.sleep(0.05)
        pytest.fail("the server did not start")

    yield start
    for server in servers:
        server.kill()
        server.wait()


@pytest.fixture
def opened(serve: Callable, open_page: Callable) -> Callable:
    """Opens the site: the watched page, and its server."""

    def open_(**how: bool) -> tuple[object, subprocess.Popen]:
        url, server = serve()
        watched = open_page(url, **how)
        return watched, server

    return open_


def guesses(page: object) -> list[tuple[str, float]]:
    """(class, probability) of the top five shown."""
    page.wait_for_selector("#answer:not([hidden])")
    return [
        (li.get_attribute("data-class"), float(li.get_attribute("data-prob"))) for li in page.locator(".guess").all()
    ]


def saved_rows(page: object) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "predictions.csv"
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))


def test_a_folder_gets_the_rows_of_prediction_and_then_no_server_is_needed(
    site: Path, photos: Path, opened: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    bundle = site.parent / "bundle"
    predict(PredictConfig(checkpoint=bundle, input=photos, output=out, engine="torch", precision="float32"))
    with open(out, encoding="utf-8", newline="") as file:
        wanted = list(csv.DictReader(file))

    watched, server = opened()
    page = watched.page
    page.set_input_files("#folder", photos)
    page.wait_for_selector(f"#count:has-text('{len(wanted)} of {len(wanted)} photos, 2 failed')")
    found = saved_rows(page)
    assert [list(row) for row in found] == [list(row) for row in wanted]
    for row, right in zip(found, wanted, strict=True):
        probs = [name for name in right if name.startswith("prob") and right[name]]
        others = [name for name in right if name not in probs]
        assert {name: row[name] for name in others} == {name: right[name] for name in others}
        tolerance = 2e-3 if "p3" in right["path"] else PROB_TOLERANCE  # colours are rounded in another way
        assert [float(row[name]) for name in probs] == pytest.approx(
            [float(right[name]) for name in probs], abs=tolerance
        ), right["path"]

    page.wait_for_selector("body[data-offline]")
    server.kill()
    server.wait()
    page.reload()
    page.set_input_files("#files", photos / "0001.jpg")
    row = next(row for row in wanted if row["path"] == "0001.jpg")
    assert [name for name, _ in guesses(page)] == [row[f"class{rank}"] for rank in ("", "_2", "_3", "_4")]
    page.wait_for_selector("#status:has-text('Ready, also without a network')")
    assert page.evaluate("crossOriginIsolated"), "threads are allowed from the second visit on"
    own = (page.url, f"blob:{page.url}")
    assert all(url.startswith(own) for url in watched.requests), watched.requests
    assert (watched.errors, watched.exceptions) == ([], [])


@pytest.mark.slow
def test_real_photos_get_the_answers_of_prediction(
    site: Path, flowers102: Path, serve: Callable, open_page: Callable, tmp_path: Path
) -> None:
    """A network of usual size on photos as they came: best classes of at least 99%, probabilities within rounding."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((flowers102 / "photos").iterdir())[::3]:
        shutil.copy(path, photos)
    bundle = quick_bundle(tmp_path / "bundle", flowers102 / "train")
    export(ExportConfig(tmp_path / "site", bundle, "web", check_images=photos, check_count=30))
    predict(
        PredictConfig(checkpoint=bundle, input=photos, output=tmp_path / "out.csv", engine="torch", precision="float32")
    )
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        wanted = list(csv.DictReader(file))
    page = open_page(serve(tmp_path / "site")[0]).page
    page.set_input_files("#files", sorted(photos.iterdir()))
    page.wait_for_selector(f"#count:has-text('{len(wanted)} of {len(wanted)} photos')", timeout=5 * WAIT_MS)
    found = saved_rows(page)
    assert [row["path"] for row in found] == [row["path"] for row in wanted]
    pairs = list(zip(found, wanted, strict=True))
    assert np.mean([row["class"] == right["class"] for row, right in pairs]) >= 0.99
    assert max(abs(float(row["prob"]) - float(right["prob"])) for row, right in pairs) < PROB_TOLERANCE


def test_the_square_is_cut_to_the_last_bit_as_prediction_cuts_it(opened: Callable) -> None:
    page = opened()[0].page
    run = """async ({width, height, data, how}) => {
      const { viewOf } = await import(`${location.origin}/view.js`);
      const rgb = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const read = (left, top, w, h) => {
        const out = new Uint8ClampedArray(w * h * 4);
        for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) for (let c = 0; c < 3; c++)
          out[(y * w + x) * 4 + c] = rgb[((top + y) * width + left + x) * 3 + c];
        return out;
      };
      return Array.from(viewOf(width, height, read, how));
    }"""
    for width, height, resize, crop, interpolation in [
        (167, 125, 64, 56, "bilinear"), (90, 300, 40, 33, "bicubic"), (20, 31, 50, 45, "bicubic"),
        (1, 9, 12, 12, "bilinear"), (64, 64, 64, 64, "bilinear"), (1900, 900, 31, 30, "bilinear"),
    ]:  # fmt: skip
        image = photo(height, width, seed=width)
        how = Preprocessing(resize, crop, interpolation=interpolation)
        data = base64.b64encode(image.tobytes()).decode()
        found = page.evaluate(run, {"width": width, "height": height, "data": data, "how": how.to_dict()})
        np.testing.assert_array_equal(np.array(found, np.uint8).reshape(crop, crop, 3), how.view(image))


def test_nothing_can_leave_the_page_or_its_worker(opened: Callable) -> None:
    watched, _ = opened()
    page = watched.page
    page.wait_for_selector("body[data-ready]")
    send = """new Promise((done) => {
      addEventListener("securitypolicyviolation", ({violatedDirective}) => done(violatedDirective));
      fetch("http://127.0.0.1:9/", {method: "POST", body: "photo", mode: "no-cors"}).catch(() => {});
    })"""
    assert page.evaluate(send) == "connect-src"
    assert page.workers[0].evaluate(send) == "connect-src"


def test_names_are_only_text(opened: Callable, photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    odd.write_bytes((photos / "0001.jpg").read_bytes())
    watched, _ = opened()
    page = watched.page
    page.set_input_files("#files", odd)
    guesses(page)
    assert page.inner_text("#name") == "<img src=x onerror=alert(1)>.jpg, 48 × 40 pixels"
    page.click("#classes summary")
    assert "<img src=x onerror=alert(1)>" in page.locator("#class-list li").all_inner_texts()
    page.fill("#filter", "ONERROR")
    assert page.locator("#class-list li:visible").count() == 1
    assert page.locator("#class-list li:visible img").get_attribute("src") == "examples/1.jpg"
    assert (watched.errors, watched.exceptions) == ([], [])


def test_unsure_is_said_where_it_is_wished(opened: Callable, photos: Path) -> None:
    page = opened()[0].page
    page.click("#settings summary")
    page.fill("#min-prob", "100")
    page.set_input_files("#files", [photos / "0001.jpg", photos / "0002.jpg", photos / "cut.jpg"])
    page.wait_for_selector("#count:has-text('3 of 3 photos, 2 unsure, 1 failed')")
    assert [row["status"] for row in saved_rows(page)] == ["unsure", "unsure", "error"]
    page.set_input_files("#files", photos / "0001.jpg")
    page.wait_for_selector("#verdict:has-text('Unsure: no class reaches 100.0%')")
    page.fill("#min-prob", "0")
    assert page.inner_text("#verdict") == ""
    page.set_input_files("#files", photos / "cut.jpg")
    page.wait_for_selector("#verdict:has-text('No answer: truncated JPEG')")


def test_it_works_where_nothing_is_kept_and_before_there_are_photos(opened: Callable) -> None:
    watched, _ = opened()
    denied = "{ get() { throw new DOMException('denied', 'SecurityError'); } }"  # as in a frame of another host's page
    watched.page.add_init_script(f"Object.defineProperty(window, 'localStorage', {denied})")
    watched.page.reload()
    watched.page.wait_for_selector("body[data-ready]")
    watched.page.click("#settings summary")
    watched.page.fill("#min-prob", "50")
    fails = "createReader: () => ({ readEntries: (_, fail) => fail(new DOMException('no permission')) })"
    entry = f"{{ webkitGetAsEntry: () => ({{ isDirectory: true, name: 'mine', {fails} }}) }}"
    watched.page.evaluate(f"document.ondrop({{ preventDefault() {{}}, dataTransfer: {{ items: [{entry}] }} }})")
    assert watched.page.inner_text("#status") == "Not all of this can be read: no permission"
    assert watched.exceptions == []


def test_photos_are_dropped_and_pasted(opened: Callable, photos: Path) -> None:
    page = opened()[0].page
    page.wait_for_selector("body[data-ready]")  # an event before the page listens is lost
    bytes_ = json.dumps(list((photos / "0002.jpg").read_bytes()))
    for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([bytes, kind, field]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([Uint8Array.from(JSON.parse(bytes))], `${kind}.jpg`, {type: "image/jpeg"}));
              const make = kind === "drop" ? DragEvent : ClipboardEvent;
              document.body.dispatchEvent(new make(kind, {[field]: transfer, bubbles: true, cancelable: true}));
            }""",
            [bytes_, kind, field],
        )
        page.wait_for_selector(f"#name:has-text('{kind}.jpg')")
        assert len(guesses(page)) == 4


def test_the_keyboard_is_enough(opened: Callable, photos: Path) -> None:
    page = opened()[0].page
    page.set_input_files("#files", [photos / "0001.jpg", photos / "0002.jpg"])
    page.wait_for_selector("#count:has-text('2 of 2')")
    seen = []
    page.focus("#files")
    while len(seen) < 12 and "filter" not in seen:
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if seen[-1] == "class-count":
            page.keyboard.press("Enter")
    assert [name for name in seen if name in ("folder", "save", "class-count", "filter")] == [
        "folder", "save", "class-count", "filter",
    ]  # fmt: skip
    page.locator(".row").nth(1).focus()
    page.keyboard.press("Enter")
    assert "0002.jpg" in page.inner_text("#name")
    assert page.locator(".row").nth(1).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("phone", [True, False])
@pytest.mark.parametrize("dark", [True, False])
def test_it_is_readable_on_a_phone_and_on_a_desk(opened: Callable, photos: Path, phone: bool, dark: bool) -> None:
    watched, _ = opened(phone=phone, dark=dark)
    page = watched.page
    page.set_input_files("#files", sorted(photos.glob("*.jpg")))
    page.wait_for_selector("#done", state="hidden")
    page.locator(".row").nth(0).click()
    page.click("#settings summary")
    page.click("#classes summary")
    assert watched.overflow() <= 0
    for selector in ("h1", "#promise", "#status", ".button", "#save", ".best", ".path", ".guess .name", "dt", "dd",
                     "[data-status=error] .best", "#class-list li", "#name"):  # fmt: skip
        assert contrast(page, selector) >= 4.5, f"{selector}: WCAG 2.1, level AA"
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1) == dark
    for label in page.locator(".button:visible").all():
        assert label.bounding_box()["height"] >= 44, "a finger's size"


def test_a_new_version_takes_over_once_the_old_page_is_closed(
    site: Path, photos: Path, serve: Callable, open_page: Callable, tmp_path: Path
) -> None:
    from playwright.sync_api import TimeoutError as PageTimeout

    mine = shutil.copytree(site, tmp_path / "mine")
    url, server = serve(mine)
    page = open_page(url).page
    page.wait_for_selector("body[data-offline]")
    facts = json.loads((mine / "facts.json").read_text())
    (mine / "service_worker.js").unlink()
    web_site._write_page("Second edition", facts, mine)
    page.evaluate("navigator.serviceWorker.getRegistration().then(async (it) => { await it.update(); })")
    page.evaluate(
        "navigator.serviceWorker.getRegistration().then((it) => new Promise((done) => { "
        "const wait = () => (it.waiting ? done() : setTimeout(wait, 50)); wait(); }))"
    )
    assert page.inner_text("h1") == "Photo classifier"
    context = page.context
    other = context.new_page()
    page.close()
    for _ in range(60):  # until the browser has let go of the old page, a new one is served as before
        with contextlib.suppress(PageTimeout):  # a visit in the moment of the change may hang, the next does not
            other.goto(url, timeout=5_000)
            if other.inner_text("h1") == "Second edition":
                break
        other.goto("about:blank")
        other.wait_for_timeout(500)
    server.kill()
    server.wait()
    other.reload()
    other.set_input_files("#files", photos / "0001.jpg")
    assert len(guesses(other)) == 4
    assert other.inner_text("h1") == "Second edition"
