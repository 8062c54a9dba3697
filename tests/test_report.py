"""report.html: its figures are those of metrics.json and of scikit-learn, names are only text, nothing is fetched."""

import csv
import dataclasses
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from jobs_in_processes import Job
from tiny_job import make_bundle

from flowers.cli import parse
from flowers.config.evaluate import EvaluateConfig
from flowers.config.train import TrainConfig
from flowers.data.classes import ClassIndex
from flowers.data.folders import Samples, load_split
from flowers.errors import DataError, ModelError, UsageError
from flowers.models.bundle import load_bundle, save_bundle
from flowers.models.temperature import store, with_temperature
from flowers.reports import calibration
from flowers.reports.advice import Known, advise
from flowers.reports.answers import Answers
from flowers.reports.model_report import Background, write_model_report
from flowers.reports.plots import Line, lay_out, ticks
from flowers.training.history import History
from jobs.evaluate import main as evaluate
from jobs.train import main as train

FLAGS = ["--model", "shufflenet_v2_x0_5", "--weights", "none", "--image-size", 32, "--epochs", 2, "-j", 0]


def run_training(data_dir: Path, run_dir: Path, *flags: object) -> Path:
    words = [*FLAGS, "--data-dir", data_dir, "--output-dir", run_dir, *flags]
    assert train(parse(TrainConfig, [str(word) for word in words])) == 0
    return run_dir


@pytest.fixture(scope="module")
def run_dir(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_training(sample_set, tmp_path_factory.mktemp("report") / "run")


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


class Sources(HTMLParser):
    """Whatever a browser would load for a page or lead to, and the names of handlers in its tags."""

    def __init__(self, page: str):
        super().__init__()
        self.found = re.findall(r"url\([^)]*\)|@import", page)
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def fetched(page: str) -> list[str]:
    """Sources that are no data in the page itself."""
    return [source for source in Sources(page).found if not source.startswith(("data:image/", "#"))]


def classes_in(data_dir: Path) -> ClassIndex:
    folders = tuple(sorted(entry.name for entry in (data_dir / "train").iterdir()))
    return ClassIndex(folders, folders)


@pytest.fixture
def answers(sample_set: Path) -> Answers:
    """Logits drawn at random for the drawn test images; the right class is often best."""
    classes = classes_in(sample_set)
    samples = load_split(sample_set, "test", classes)
    logits = np.random.default_rng(0).normal(size=(len(samples), len(classes))).astype(np.float32)
    logits[np.arange(len(samples)), samples.targets] += 1
    return Answers("test", samples, classes, logits)


def test_figures_are_those_of_metrics_json(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    text = text_of(page)
    for split, figures in json.loads((run_dir / "metrics.json").read_text()).items():
        if split in ("best_step", "best_epoch"):
            continue
        low, high = calibration.wilson_interval(round(figures["top1"] * figures["images"]), figures["images"])
        share = f"{figures['top1']:.2%} top1; 95% interval {low:.1%} to {high:.1%}"
        assert f"{split}: {figures['images']} images {share}" in text
        assert f"{figures['loss']:.4f} loss" in text
    for part in ("Loss", "Top1", "Learning rate", "Images a second", "Time spent waiting", "cpu"):
        assert part in text, part
    assert "What training saw" not in text, "a head on cached features sees each image as it is"
    assert "No duplicates, no image in two splits, no odd file" in text
    assert fetched(page) == []
    sections = re.findall(r'<section id="(.*?)">', page)
    assert sections == ["now", "mistakes", "labels", "pairs", "classes", "curves", "calibration", "data", "made"]
    assert "were not judged: only runs that fit a linear head at once do that." in text
    best = json.loads((run_dir / "metrics.json").read_text())["best_epoch"]
    assert f"The best model is that of epoch {best} of 2." in text
    assert f"best: epoch {best}" in text
    few = len(load_bundle(run_dir).classes) <= 10
    assert ("top5" not in text.split("What now")[0]) == few


def test_figures_are_those_of_scikit_learn(answers: Answers, run_dir: Path, tmp_path: Path) -> None:
    targets, predicted = answers.targets, answers.logits.argmax(1)
    probs = np.exp(answers.logits - answers.logits.max(1, keepdims=True)).astype(np.float64)
    probs /= probs.sum(1, keepdims=True)
    expected = sklearn.metrics.precision_recall_fscore_support(targets, predicted, zero_division=np.nan)
    rows = answers.by_class()
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        found = [getattr(row, column) for row in rows]
        np.testing.assert_allclose([np.nan if value is None else value for value in found], values)
    assert answers.metrics.top1 == sklearn.metrics.accuracy_score(targets, predicted)
    np.testing.assert_allclose(answers.metrics.loss, sklearn.metrics.log_loss(targets, probs), rtol=1e-5)
    matrix = sklearn.metrics.confusion_matrix(targets, predicted)
    for pair in answers.confusions(5):
        assert len(pair.images) == matrix[pair.target, pair.answer]
    np.fill_diagonal(matrix, 0)
    assert len(answers.confusions(1)[0].images) == matrix.max()
    assert len(answers.mistakes()) == matrix.sum()
    hits, confidences = predicted == targets, probs.max(1)
    for rule in calibration.rules(confidences, hits, (0.0, 0.4, 0.9999)):
        kept = confidences > rule.above
        assert rule.coverage == kept.mean()
        assert rule.accuracy == (sklearn.metrics.accuracy_score(targets[kept], predicted[kept]) if kept.any() else None)
    path = tmp_path / "report.html"
    write_model_report(path, load_bundle(run_dir), answers, Background({"test": answers.metrics.to_dict()}))
    text = text_of(path.read_text(encoding="utf-8"))
    label = answers.label(0)
    precision, recall, f1 = (f"{values[0]:.1%}" if values[0] == values[0] else "–" for values in expected[:3])
    assert f"{label} {label} {expected[3][0]} {precision} {recall} {f1}" in text


def test_metrics_json_and_history_csv_hold_what_the_page_shows(sample_set: Path, run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for split in ("valid", "test"):
        figures = metrics[split]
        hits = round(figures["top1"] * figures["images"])
        assert figures["top1_interval"] == list(calibration.wilson_interval(hits, figures["images"]))
        assert 0 <= figures["ece"] <= 1
        assert [row["class"] for row in figures["classes"]] == list(load_bundle(run_dir).classes.folders)
        assert sum(row["images"] for row in figures["confusions"]) == figures["images"] - hits
    with open(run_dir / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    for line in lines:
        (row,) = [row for row in rows if row["step"] == str(line["step"])]
        for name in ("loss", "top1", "images"):
            assert row[f"{line['event']}_{name}"] == str(line[name])
    best = next(row for row in rows if float(row["valid_loss"]) == metrics["valid"]["loss"])
    assert int(best["epoch"]) == metrics["best_epoch"]


def test_a_history_cut_back_has_the_table_of_what_is_left(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", with_table=True)
    history.append("valid", step=5, epoch=1, loss=2.0, top1=0.5, top5=1.0, images=4, train_loss=3.0)
    before, size_bytes = history.table.read_text(), history.size_bytes
    header, row = before.splitlines()
    assert header == "step,epoch,lr,train_loss,train_top1,train_images,valid_loss,valid_top1,valid_top5,valid_images"
    assert row == "5,1,,3.0,,,2.0,0.5,1.0,4"
    history.append("train", step=9, epoch=1, lr=0.1, loss=1.5, top1=0.25, images=36)
    history.append("valid", step=9, epoch=1, loss=1.0, top1=0.75, top5=1.0, images=4, train_loss=1.5)
    assert history.table.read_text().splitlines()[2] == "9,1,0.1,1.5,0.25,36,1.0,0.75,1.0,4"
    history.cut(size_bytes)
    assert history.table.read_text() == before
    assert not History(tmp_path / "timing.jsonl").table


@pytest.mark.parametrize("value", [1e-30, 3e-13, 0.003, 0.0, 7e20])
def test_an_axis_has_room_around_a_value_of_any_size(value: float) -> None:
    values, (low, high) = ticks(value, value, tight=False)
    assert low < value < high
    assert 4 <= len(values) <= 9
    assert len(set(values)) == len(values)
    assert lay_out("rate", [Line("rate", [(1, value), (2, value)], "purple")], x_label="epoch") is not None


def test_no_axis_of_shares_reaches_beyond_100_percent() -> None:
    plot = lay_out("top1", [Line("top1", [(0, 1.0), (1, 1.0)])], x_label="epoch", percent=True)
    assert plot.y_ticks[-1].text == "100%"


@pytest.mark.parametrize(
    ("ys", "labels"),
    [
        ([12_000, 12_800], ["12,000", "12,200", "12,400", "12,600", "12,800"]),
        ([10_000, 10_040], ["10,000", "10,010", "10,020", "10,030", "10,040"]),
        ([0.001, 0.003], ["0.0010", "0.0015", "0.0020", "0.0025", "0.0030"]),
        ([0, 1_250_000], ["0", "250,000", "500,000", "750,000", "1,000,000", "1,250,000"]),
    ],
)
def test_labels_of_an_axis_are_whole_and_fit(ys: list[float], labels: list[str]) -> None:
    plot = lay_out("speed", [Line("speed", list(enumerate(ys)))], x_label="epoch", mark=(1, "best: epoch 1"))
    assert [tick.text for tick in plot.y_ticks] == labels
    assert plot.left >= 7 * max(map(len, labels)) + 6, "a label ends 6 px before the axis and begins inside the drawing"
    assert plot.paths[0].dots[0][0] == plot.left
    assert plot.mark.at == plot.paths[0].dots[1][0]


def test_the_matrix_is_that_of_scikit_learn(answers: Answers) -> None:
    size = len(answers.classes)
    expected = sklearn.metrics.confusion_matrix(answers.targets, answers.predicted)
    assert answers.most_confused(size) == list(range(size))
    np.testing.assert_array_equal(answers.matrix(range(size)), expected)
    chosen = answers.most_confused(3)
    wrong = expected.sum(0) + expected.sum(1) - 2 * expected.diagonal()
    assert sorted(wrong[chosen]) == sorted(wrong)[-3:]
    np.testing.assert_array_equal(answers.matrix(chosen), expected[np.ix_(chosen, chosen)])
    details = answers.details()
    assert {(row["class"], row["answer"]): row["images"] for row in details["confusions"]} == {
        (answers.classes.folders[i], answers.classes.folders[j]): expected[i, j]
        for i, j in zip(*np.nonzero(expected), strict=True) if i != j
    }  # fmt: skip
    assert [row["images"] for row in details["classes"]] == expected.sum(1).tolist()
    assert details["ece"] == calibration.calibration_error(answers.confidences, answers.hits)
    assert details["top1_interval"] == list(calibration.wilson_interval(expected.trace(), expected.sum()))
    json.dumps(details)


def test_advice_follows_from_the_figures(answers: Answers, tmp_path: Path) -> None:
    def of(answers: Answers, **facts: object) -> list[str]:
        return [f"{text} {command}" for text, command in advise(answers, Known(Path("run/best"), **facts))]

    (nothing,) = of(answers)
    assert "Nothing in these figures stands out" in nothing
    assert "--checkpoint run/best --input PHOTOS" in nothing
    (line,) = of(answers, left_out={"train": [("a.jpg", "empty file")]}, data_dir="my data")
    assert line.startswith("1 image cannot be read and was left out.")
    assert line.endswith("check --data-dir 'my data'")
    (line,) = of(answers, findings=[["images of test that are in train, too", 2, "a.jpg; b.jpg"]])
    assert "Images of test that are in train, too: 2 (a.jpg; b.jpg). The figures of test are better than" in line
    head = {"finetune": "head", "feature_cache": True, "views": 1}
    (line,) = of(answers, top1={"train": 1.0, "valid": 0.9}, config=head, run_dir=Path("run"))
    assert "overfits: top1 is 100.0% on the training images and 90.0% on the validation images" in line
    assert line.endswith("--config run/config.yaml --output-dir run-2 --views 8")
    assert "Nothing" in of(answers, top1={"train": 0.95, "valid": 0.9})[0]
    (line,) = of(answers, error=0.2, calibrated_error=0.02, data_dir="D")
    assert "by 20.0% on average; a temperature would leave 2.0%" in line
    assert line.endswith("--checkpoint run/best --data-dir D --split valid --calibrate")
    weakest = min(answers.by_class(), key=lambda row: row.recall)
    few = [index for index in range(len(answers.classes)) for _ in range(2 if index == weakest.index else 20)]
    (line,) = of(answers, splits={"train": Samples(tmp_path, [str(i) for i in range(len(few))], np.array(few))})
    assert f"The smallest class, {answers.label(weakest.index)}, has 2 training images (the median is 20)" in line
    assert line.endswith("--balance classes")
    constant = dataclasses.replace(answers, logits=np.eye(1, len(answers.classes)).repeat(len(answers.samples), 0))
    assert "not better than always giving the most frequent class" in of(constant, config={"weights": "none"})[0]
    everything = {"left_out": {"train": [("a", "b")]}, "top1": {"train": 1.0, "valid": 0.5}}
    assert len(of(constant, findings=[["exact duplicates", 1, "a = b"]], **everything)) == 3


def test_calibration_error_by_hand() -> None:
    confidences = np.array([0.95, 0.99, 0.55, 0.6])
    hits = np.array([True, False, True, True])
    # (0.933, 1]: two images, 0.97 sure, half right; (0.533, 0.6]: two, 0.575 sure, both right
    assert calibration.calibration_error(confidences, hits) == pytest.approx(0.5 * 0.47 + 0.5 * 0.425)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_a_temperature_is_found_again(truth: float) -> None:
    rng = np.random.default_rng(1)
    calm = rng.normal(size=(20_000, 5)) * 2
    targets = np.array([rng.choice(5, p=row) for row in calibration.softmax(calm)])
    assert calibration.fit_temperature(calm * truth, targets) == pytest.approx(truth, rel=0.05)


def test_a_model_may_be_named_by_its_file(sample_set: Path, run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir / "best", tmp_path / "best")
    flags = ["--checkpoint", copy / "model.json", "--data-dir", sample_set, "-j", 0, "--no-report"]
    assert evaluate(parse(EvaluateConfig, [*map(str, flags)])) == 0
    assert (copy / "metrics-test.json").exists()


def test_no_temperature_is_best_where_every_answer_is_right_or_none() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 5))
    assert calibration.fit_temperature(logits, logits.argmax(1)) is None
    assert calibration.fit_temperature(logits, logits.argmin(1)) is None


def test_a_model_that_makes_no_mistake_is_not_calibrated(sample_set: Path, run_dir: Path, tmp_path: Path) -> None:
    """Else it would say 100% of everything from then on, of photos that are no flowers too."""
    copy, data_dir = shutil.copytree(run_dir, tmp_path / "run"), tmp_path / "data"
    bundle = load_bundle(copy)
    chosen = bundle.classes.folders[0]
    shutil.copytree(sample_set / "valid" / chosen, data_dir / "valid" / chosen)
    bundle.state_dict["head.output.bias"][0] += 100  # all photos there are of that class
    save_bundle(bundle, copy / "best")
    files = {path: path.read_bytes() for path in (copy / "best").iterdir()}
    flags = ["--checkpoint", copy, "--data-dir", data_dir, "-j", 0, "--split", "valid"]
    with pytest.raises(DataError, match="cannot fit a temperature: 4 of 4 answers are correct. Nothing was stored"):
        evaluate(parse(EvaluateConfig, [*map(str, flags), "--calibrate"]))
    assert files == {path: path.read_bytes() for path in (copy / "best").iterdir()}
    assert evaluate(parse(EvaluateConfig, [*map(str, flags)])) == 0
    assert "--calibrate" not in (copy / "report-data-valid.html").read_text()


def test_a_temperature_changes_probs_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "model"))
    (tmp_path / "model" / "metrics-valid.json").write_text("{}")
    (tmp_path / "model" / "photos" / "more").mkdir(parents=True)
    (tmp_path / "model" / "photos" / "more" / "1.jpg").write_text("mine")
    (tmp_path / "model" / "link").symlink_to("photos")
    store(with_temperature(bundle, 2.0))
    monkeypatch.chdir(tmp_path / "model")
    store(with_temperature(load_bundle(Path(".")), 1.5))
    assert (tmp_path / "model" / "link" / "more" / "1.jpg").read_text() == "mine"
    assert (tmp_path / "model" / "link").is_symlink()
    warm = load_bundle(tmp_path / "model")
    assert warm.made["temperature"] == 3.0
    assert warm.hash != bundle.hash
    assert (tmp_path / "model" / "metrics-valid.json").exists()
    for name in ("head.output.weight", "head.output.bias"):
        np.testing.assert_allclose(warm.state_dict[name] * 3, bundle.state_dict[name], rtol=1e-5)
    with pytest.raises(ModelError, match="temperature: got 0"):
        with_temperature(bundle, 0.0)


def test_calibrated_on_valid_and_stored(sample_set: Path, run_dir: Path, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    flags = ["--checkpoint", copy, "--data-dir", sample_set, "-j", 0]
    assert evaluate(parse(EvaluateConfig, [*map(str, flags), "--split", "valid"])) == 0
    before = json.loads((copy / "metrics-valid.json").read_text())
    labels = load_bundle(copy).classes.labels
    (tmp_path / "names.json").write_text(json.dumps({row["class"]: f"Nº {row['class']}" for row in before["classes"]}))
    named = ["--class-names", str(tmp_path / "names.json")]
    assert evaluate(parse(EvaluateConfig, [*map(str, flags), "--split", "valid", "--calibrate", *named])) == 0
    after = json.loads((copy / "metrics-valid.json").read_text())
    assert "the same answers" in capsys.readouterr().out
    assert (after["top1"], after["model_hash"] != before["model_hash"]) == (before["top1"], True)
    assert after["loss"] <= before["loss"] + 1e-6
    shown = [row["label"] for row in after["classes"]]
    assert shown == [f"Nº {row['class']}" for row in before["classes"]]
    assert set(shown) <= set(re.findall(r"Nº [^<\"]+", (copy / "report-valid.html").read_text(encoding="utf-8")))
    assert load_bundle(copy).classes.labels == labels, "the model keeps its names"
    with pytest.raises(UsageError, match="--calibrate: got --split test, expected valid"):
        parse(EvaluateConfig, [*map(str, flags), "--split", "test", "--calibrate"])


def test_names_are_only_text_and_parts_may_be_missing(sample_set: Path, tmp_path: Path) -> None:
    data_dir, evil = tmp_path / "data", "<script>alert(1)"
    for split in ("train", "valid"):  # no test split
        shutil.copytree(sample_set / split, data_dir / split)
        for place, folder in enumerate(sorted((data_dir / split).iterdir())):
            for photo in folder.iterdir():
                photo.rename(folder / f"<img src=x onerror=alert(2)> {photo.name}")
            if place == 0:
                folder.rename(data_dir / split / evil)
    with open(tmp_path / "names.json", "w") as file:
        json.dump({evil: "\"'><b onclick='alert(3)'>"}, file)
    run_dir = run_training(data_dir, tmp_path / "run", "--class-names", tmp_path / "names.json", "--no-feature-cache")
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b onclick" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert fetched(page) == []
    assert Sources(page).handlers == []
    assert "test:" not in text_of(page)
    assert "What training saw" in text_of(page)
    (run_dir / "history.jsonl").unlink()
    words = ["--checkpoint", run_dir / "best", "--data-dir", data_dir, "--split", "valid", "-j", 0]
    assert evaluate(parse(EvaluateConfig, [str(word) for word in words])) == 0
    assert "Learning rate" not in (run_dir / "best" / "report-valid.html").read_text(encoding="utf-8")


def test_a_page_that_fails_costs_nothing_else(
    sample_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("flowers.training.final_report.write_model_report", broken)
    run_dir = run_training(sample_set, tmp_path / "run")
    captured = capsys.readouterr()
    assert "no report: ZeroDivisionError: of all things" in captured.out + captured.err
    assert (run_dir / "metrics.json").exists()
    assert not (run_dir / "report.html").exists()
    assert not (run_training(sample_set, tmp_path / "plain", "--no-report") / "report.html").exists()


@pytest.mark.processes
def test_two_processes_write_one_page_with_the_same_figures(sample_set: Path, run_dir: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--data-dir", sample_set, "--output-dir", "run", "-b", 16]
    job = Job("train", flags, folder=tmp_path, processes=2)
    assert job.wait() == [0, 0], job.output

    def classes(folder: Path) -> str:
        page = (folder / "report.html").read_text(encoding="utf-8")
        return re.search(r'<table class="sortable" id="class-table">.*?</table>', page, re.DOTALL)[0]

    assert classes(tmp_path / "run") == classes(run_dir)


def test_more_mistakes_than_photos_on_the_page(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "model"))
    targets = np.arange(400) % len(bundle.classes)
    samples = Samples(tmp_path, [f"{index}.jpg" for index in range(400)], targets)
    logits = -np.eye(len(bundle.classes), dtype=np.float32)[targets]  # all are wrong
    answers = Answers("valid", samples, bundle.classes, logits)
    background = Background({"valid": answers.metrics.to_dict()}, splits={"valid": samples})
    write_model_report(tmp_path / "report.html", bundle, answers, background, answers)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"{index}.jpg" in page for index in (0, 399))


def test_commands_hold_where_names_have_blanks(answers: Answers, tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "my model"))
    background = Background({"test": answers.metrics.to_dict()}, data_dir="my data")
    write_model_report(tmp_path / "report.html", bundle, answers, background, answers)
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"--checkpoint '{bundle.folder}' --data-dir 'my data' --split valid --calibrate</pre>" in page
    assert "check --data-dir 'my data'</code>" in page


def test_a_report_of_102_classes_is_small(flowers102: Path, tmp_path: Path) -> None:
    classes = classes_in(flowers102)
    samples = load_split(flowers102, "valid", classes)
    bundle = load_bundle(make_bundle(tmp_path / "model"))
    logits = np.random.default_rng(0).normal(size=(len(samples), 102)).astype(np.float32)
    answers = Answers("valid", samples, classes, logits)
    background = Background({"valid": answers.metrics.to_dict()}, splits={"valid": samples})
    write_model_report(tmp_path / "report.html", bundle, answers, background, answers)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
