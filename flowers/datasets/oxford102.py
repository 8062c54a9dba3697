"""The Oxford 102 flower set (Nilsback and Zisserman 2008): from its three original files to an image-folder tree.

``102flowers.tgz`` holds 8,189 photos, ``imagelabels.mat`` a label from 1 to 102 for each, ``setid.mat`` the official
split. Folders are named by these labels, which start at 1; as strings they sort 1, 10, 100, 101, 102, 11, ...
Accuracies compare only within one split: the official one trains on 1,020 photos and tests on 6,149, the 2018 course
copy trains on 6,552 and tests on 819.
"""

import hashlib
import http.client
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowers import console
from flowers.data.tables import table_rows
from flowers.datasets.set_folder import new_set, read_marker
from flowers.errors import DataError, system_reason

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
PHOTOS, LABELS, SPLIT = "102flowers.tgz", "imagelabels.mat", "setid.mat"
ORIGINALS = {  # file to its md5, as in torchvision.datasets.Flowers102
    PHOTOS: "52808999861908f626f3c1f4e79d11fa",
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLIT: "a5357ecc9cb78c4bef273ce3793fc85c",
}
MARKER = "oxford102.json"  # says of what a set was made
_SPLIT_KEYS = {"train": "trnid", "valid": "valid", "test": "tstid"}
_PHOTO_NAME = re.compile(r"image_(\d{5})\.jpg")

NAMES = """
    pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily;
    moon orchid; bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear
    thistle; yellow iris; globe-flower; purple coneflower; peruvian lily; balloon flower; giant white arum
    lily; fire lily; pincushion flower; fritillary; red ginger; grape hyacinth; corn poppy; prince of wales
    feathers; stemless gentian; artichoke; sweet william; carnation; garden phlox; love in the mist; mexican
    aster; alpine sea holly; ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose;
    barbeton daisy; daffodil; sword lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup;
    oxeye daisy; common dandelion; petunia; wild pansy; primula; sunflower; pelargonium; bishop of llandaff;
    gaura; geranium; orange dahlia; pink-yellow dahlia; cautleya spicata; japanese anemone; black-eyed
    susan; silverbush; californian poppy; osteospermum; spring crocus; bearded iris; windflower; tree poppy;
    gazania; azalea; water lily; rose; thorn apple; morning glory; passion flower; lotus; toad lily;
    anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree mallow; magnolia; cyclamen;
    watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow;
    mexican petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""


def prepare_oxford102(
    output_dir: Path,
    *,
    source_dir: Path | None = None,
    download_dir: Path = Path("data/downloads"),
    split_file: Path | None = None,
) -> dict[str, int]:
    """Write train/, valid/, test/ with a folder a class, and cat_to_name.json.

    The folder appears only when the set is whole. A set that is already there, of the same split, is kept;
    downloads that are complete are kept, too.

    Args:
        output_dir: where the set goes; must not hold anything else.
        source_dir: folder of the three original files; None downloads them.
        download_dir: where to.
        split_file: CSV with a header and the columns ``path`` and ``split`` (train, valid or val, test). Only
            the file's name counts in ``path`` (``image_00001.jpg``), so a listing of any tree will do; other
            columns are ignored, photos not listed are left out. None takes the official split.

    Returns:
        Photos in each split.

    Raises:
        DataError: a file is missing, broken or not the original; the split names an unknown photo; SciPy is
            not there; the output folder holds something else.
        FlowersError: the place cannot be written.
    """
    output_dir = Path(output_dir).resolve()
    settings = {"split": "official"}
    if split_file is not None:
        split_of = read_split(split_file)
        digest = hashlib.sha256(repr(sorted(split_of.items())).encode()).hexdigest()
        settings = {"split": f"{split_file.name} sha256 {digest}"}
    if (found := read_marker(output_dir, MARKER, settings)) is not None:
        return dict(found.get("counts", {}))
    source_dir = download(download_dir) if source_dir is None else source_dir
    check_originals(source_dir)
    labels = _read_mat(source_dir / LABELS, "labels")
    if split_file is None:
        numbers = {split: _read_mat(source_dir / SPLIT, key) for split, key in _SPLIT_KEYS.items()}
        split_of = {int(number): split for split, row in numbers.items() for number in row}
    unknown = sorted(number for number in split_of if not 1 <= number <= len(labels))
    if unknown:
        raise DataError(f"{split_file}: image_{unknown[0]:05d}.jpg is not among the {len(labels)} photos of the set")
    sizes = Counter(split_of.values())
    counts = {split: sizes[split] for split in _SPLIT_KEYS if sizes[split]}
    with new_set(output_dir, MARKER, {**settings, "counts": counts}, class_names()) as folder:
        _unpack(source_dir / PHOTOS, folder, labels, split_of)
    return counts


def class_names() -> tuple[str, ...]:
    """The 102 display names, label 1 first."""
    return tuple(" ".join(name.split()) for name in NAMES.split(";"))


def download(folder: Path) -> Path:
    """Fetch what is not yet in ``folder`` through torchvision, which checks each file.

    Returns:
        ``folder``.

    Raises:
        DataError: no connection, or another file than expected came.
    """
    from torchvision.datasets.utils import download_url

    for name, md5 in ORIGINALS.items():
        try:
            download_url(URL + name, folder, md5=md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"cannot download {URL}{name} to {folder}: {reason}; without internet, copy {', '.join(ORIGINALS)} "
                "into a folder and name it with --source-dir"
            ) from error
    return folder


def check_originals(folder: Path) -> None:
    """Compare the three files with the known checksums.

    Raises:
        DataError: one is missing, cannot be read, or is another file.
    """
    for name, expected in ORIGINALS.items():
        try:
            with open(folder / name, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except FileNotFoundError:
            raise DataError(f"no {name} in {folder}; expected {', '.join(ORIGINALS)}, from {URL}") from None
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {system_reason(error)}") from error
        if digest != expected:
            size = (folder / name).stat().st_size
            raise DataError(
                f"{folder / name} is not the original: md5 {digest} of {size} bytes, expected {expected}; "
                f"download it again from {URL}{name}"
            )


def read_split(path: Path) -> dict[int, str]:
    """Read a split from a CSV list, as ``prepare_oxford102`` describes.

    Returns:
        Photo number to "train", "valid" or "test".

    Raises:
        DataError: no readable CSV, a column is missing, a row makes no sense, or a photo is listed twice.
    """
    split_of: dict[int, str] = {}
    for line, row in table_rows(path, "path,split"):
        if "split" not in row:
            raise DataError(f"{path}: no column 'split'; expected a header with path,split")
        name = re.split(r"[/\\]", row["path"])[-1]
        match = _PHOTO_NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{path}, line {line}: {name!r} is not a name such as image_00001.jpg")
        split = {"val": "valid"}.get(row["split"], row["split"])
        if split not in _SPLIT_KEYS:
            raise DataError(f"{path}, line {line}: split {split!r}, expected train, valid or test")
        if int(match[1]) in split_of:
            raise DataError(f"{path}, line {line}: {name} is listed twice")
        split_of[int(match[1])] = split
    if not split_of:
        raise DataError(f"{path}: lists no photo")
    return split_of


def _read_mat(path: Path, key: str) -> np.ndarray:
    """One row of numbers of a MATLAB file; [N] int64."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"reading {path.name} needs SciPy: pip install scipy") from None
    try:
        return np.asarray(loadmat(path)[key]).ravel().astype(np.int64)
    except Exception as error:  # a broken file may fail anywhere inside SciPy
        raise DataError(f"cannot read {key!r} from {path}: {type(error).__name__}: {error}") from error


def _unpack(archive: Path, folder: Path, labels: np.ndarray, split_of: dict[int, str]) -> None:
    """Write each photo to SPLIT/LABEL/image_NNNNN.jpg.

    Names in the archive only say which photo it is, and are never used as a path.
    """
    for split, label in sorted({(split, labels[number - 1]) for number, split in split_of.items()}):
        (folder / split / str(label)).mkdir(parents=True)
    left = dict(split_of)
    with console.progress("unpacking", len(split_of)) as meter:
        for number, data in _photos(archive):
            split = left.pop(number, None)
            if split is not None:
                name = f"image_{number:05d}.jpg"
                (folder / split / str(labels[number - 1]) / name).write_bytes(data)
                meter.advance(1)
    if left:
        raise DataError(
            f"{archive} lacks {len(left)} of {len(split_of)} photos, such as image_{min(left):05d}.jpg; "
            f"download it again from {URL}{PHOTOS}"
        )


def _photos(archive: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each photo in the archive, in its order."""
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                match = _PHOTO_NAME.fullmatch(member.name.rpartition("/")[2])
                if match is not None and member.isfile():
                    yield int(match[1]), tar.extractfile(member).read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"cannot read {archive}: {error}; download it again from {URL}{PHOTOS}") from error
