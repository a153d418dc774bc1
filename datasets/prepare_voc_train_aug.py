#!/usr/bin/env python3
"""Build VOC 2012 train_aug, 10,582 images, from VOC 2012 and SBD.

train_aug = (SBD train + SBD val + VOC train) without VOC val; all of them are VOC images. Writes
<datasets>/VOC2012/ImageSets/Segmentation/train_aug.txt and, with --masks, the class masks of these images
as palette PNGs in <datasets>/VOC2012/SegmentationClassAug (VOC's own where it has one, SBD's otherwise): what
voc_2012_train_aug_sem_seg reads. Training with boxes alone does not read them.

Running it again keeps what is done.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from boxsup_d2.data.images import encode_label_map
from boxsup_d2.utils.files import atomic_write
from boxsup_d2.utils.progress import track

OFFICIAL_COUNT = 10582
_README = "See datasets/README.md for the downloads."


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status, 1 after a message on stderr."""
    args = parse_args(argv)
    try:
        prepare(Path(args.datasets), Path(args.sbd), masks=args.masks, skip_missing=args.skip_missing)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets",
        default=os.getenv("DETECTRON2_DATASETS", "datasets"),
        help="folder that holds VOC2012/ (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument("--sbd", required=True, help="SBD's folder: benchmark_RELEASE, or dataset in it")
    parser.add_argument("--masks", action="store_true", help="convert the class masks too (needs scipy)")
    parser.add_argument(
        "--skip-missing", action="store_true", help="leave out images without XML or JPEG instead of stopping"
    )
    return parser.parse_args(argv)


def prepare(datasets: Path, sbd: Path, *, masks: bool = False, skip_missing: bool = False) -> list[str]:
    """Write train_aug.txt, and the masks if asked for.

    Returns:
        The image names, sorted.

    Raises:
        FileNotFoundError: VOC or SBD is incomplete; says what is missing.
        ValueError: a mask is damaged.
    """
    voc = datasets / "VOC2012"
    sbd = sbd / "dataset" if (sbd / "dataset").is_dir() else sbd
    image_sets = voc / "ImageSets" / "Segmentation"
    names = sorted(
        (read_names(sbd / "train.txt") | read_names(sbd / "val.txt") | read_names(image_sets / "train.txt"))
        - read_names(image_sets / "val.txt")
    )
    names = check_files(voc, names, skip_missing)
    target = image_sets / "train_aug.txt"
    text = "".join(f"{name}\n" for name in names)
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        print(f"{target} is up to date: {len(names)} images")
    else:
        write(target, text.encode())
        print(f"{target}: {len(names)} images")
    if len(names) != OFFICIAL_COUNT:
        print(f"warning: the official releases give {OFFICIAL_COUNT}; yours are not (whole) official ones")
    if masks:
        convert_masks(voc, sbd, names)
    return names


def read_names(path: Path) -> set[str]:
    """The image names in a list file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist. {_README}")
    return {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def check_files(voc: Path, names: list[str], skip_missing: bool) -> list[str]:
    """The names whose XML and JPEG exist.

    Raises:
        FileNotFoundError: some do not, and `skip_missing` is off.
    """
    present = {
        folder: {path.stem for path in (voc / folder).glob(f"*{extension}")}
        for folder, extension in (("Annotations", ".xml"), ("JPEGImages", ".jpg"))
    }
    missing = [f"{folder}/{name}" for name in names for folder, stems in present.items() if name not in stems]
    if not missing:
        return names
    summary = f"{len(missing)} files are missing in '{voc}', first {', '.join(missing[:3])}."
    if not skip_missing:
        raise FileNotFoundError(
            f"{summary} SBD's images are VOC 2012's: unpack the whole VOCtrainval, or pass --skip-missing. {_README}"
        )
    print(f"warning: {summary} Their images are left out.")
    return [name for name in names if all(name in stems for stems in present.values())]


def convert_masks(voc: Path, sbd: Path, names: list[str]) -> None:
    """Write the missing files of SegmentationClassAug.

    Raises:
        FileNotFoundError: an image has a mask in neither set.
        ValueError: a .mat file is damaged.
        ImportError: scipy is needed and missing.
    """
    target = voc / "SegmentationClassAug"
    target.mkdir(exist_ok=True)
    for name in track(names, "class masks", len(names), unit="mask"):
        path = target / f"{name}.png"
        if path.exists():
            continue
        own = voc / "SegmentationClass" / f"{name}.png"
        if own.is_file():
            write(path, own.read_bytes())
            continue
        write(path, encode_label_map(read_sbd_mask(sbd / "cls" / f"{name}.mat")))
    print(f"{target}: {len(names)} masks")


def read_sbd_mask(path: Path) -> np.ndarray:
    """Class mask of one SBD file, H×W uint8, 0 = background, 1..20 = VOC's classes.

    Raises:
        FileNotFoundError, ValueError, ImportError: no such file; damaged; scipy is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist. {_README}")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("--masks reads MATLAB files with scipy: pip install scipy") from error
    try:
        mask = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises a dozen kinds for a damaged file
        raise ValueError(f"'{path}' is damaged or no SBD class mask ({error}). Unpack SBD again.") from error
    return np.asarray(mask, dtype=np.uint8)


def write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path, binary=True) as file:
        file.write(data)


if __name__ == "__main__":
    sys.exit(main())
