#!/usr/bin/env python3
"""Choose the single-object images of DUTS-TR: a substitute for DUT-TR-Single where you cannot get that.

Keeps the images whose mask has one connected component (8-neighbourhood, grey value above 127; components smaller
than --min-area of the foreground are specks and do not count), and copies them to
<datasets>/DUTS/DUTS-TR-Image-single and <datasets>/DUTS/DUTS-TR-Mask-single.

This is NOT the list that the authors of BoxCaseg published (7,991 images): one object may have several parts, and
several objects that touch are one component. Say so where you quote results.

Started again, an interrupted run continues where it stopped; the two folders appear when all is done.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np

FOREGROUND = 127


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status, 1 after a message on stderr."""
    args = parse_args(argv)
    try:
        prepare(Path(args.datasets) / "DUTS", Path(args.duts) if args.duts else None, min_area=args.min_area)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets",
        default=os.getenv("DETECTRON2_DATASETS", "datasets"),
        help="folder that DUTS/ is in or made in (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument(
        "--duts",
        default="",
        help="folder that holds DUTS-TR-Image and DUTS-TR-Mask (default: <datasets>/DUTS/DUTS-TR)",
    )
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.01,
        help="components below this share of the foreground's pixels are specks (default: 0.01)",
    )
    return parser.parse_args(argv)


def prepare(target: Path, source: Path | None = None, *, min_area: float = 0.01) -> list[str]:
    """Write the two folders.

    Args:
        target: the folder they are made in.
        source: the folder that holds DUTS-TR-Image and DUTS-TR-Mask; by default `target`/DUTS-TR.
        min_area: see the command line.

    Returns:
        Stems of the images that were chosen, sorted.

    Raises:
        FileNotFoundError: DUTS-TR is not there, or images lack a mask.
        ValueError: a mask is damaged, or the folders hold another list already.
    """
    from boxsup_d2.utils.progress import track  # takes seconds, for which --help need not wait

    if not 0 <= min_area < 1:
        raise ValueError(f"--min-area is {min_area}: a share of the foreground, at least 0 and below 1.")
    source = source or target / "DUTS-TR"
    pairs = find_pairs(source / "DUTS-TR-Image", source / "DUTS-TR-Mask")
    folders = [target / f"DUTS-TR-{kind}-single" for kind in ("Image", "Mask")]
    partial = [folder.with_name(f"{folder.name}.partial") for folder in folders]
    chosen = [
        stem
        for stem, (_, mask) in track(pairs.items(), "masks", len(pairs), unit="mask")
        if count_components(mask, min_area) == 1
    ]
    if not chosen:
        raise ValueError(f"No image of '{source}' has exactly one component. Are these DUTS's masks?")
    if already_done(folders, [pairs[stem] for stem in chosen]):
        print(f"up to date: {len(chosen)} images in '{target}'")
        return chosen
    for index, (folder, temporary) in enumerate(zip(folders, partial, strict=True)):
        if folder.exists():  # killed between the two renames
            continue
        temporary.mkdir(parents=True, exist_ok=True)
        wanted = {pairs[stem][index].name for stem in chosen}
        for stale in temporary.iterdir():  # of a run with another --min-area
            if stale.name not in wanted:
                stale.unlink()
        for stem in track(chosen, folder.name, len(chosen), unit="file"):
            copy_once(pairs[stem][index], temporary / pairs[stem][index].name)
    for folder, temporary in zip(folders, partial, strict=True):
        if not folder.exists():
            temporary.rename(folder)
    print(f"{len(chosen)} of {len(pairs)} images hold one component: '{folders[0]}', '{folders[1]}'")
    print("This is not the published list of DUT-TR-Single (7,991 images); say so where you quote results.")
    return chosen


def find_pairs(images: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """Stem → image and mask, sorted.

    Raises:
        FileNotFoundError: a folder is missing or empty, or an image has no mask.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f"'{folder}' does not exist. Unpack DUTS-TR.zip, or pass --duts.")
    pairs = {path.stem: (path, masks / f"{path.stem}.png") for path in sorted(images.glob("*.jpg"))}
    if not pairs:
        raise FileNotFoundError(f"'{images}' holds no .jpg. Unpack DUTS-TR.zip, or pass --duts.")
    present = {path.name for path in masks.iterdir()}
    missing = [str(mask) for _, mask in pairs.values() if mask.name not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} images have no mask, first {', '.join(missing[:3])}. Unpack DUTS-TR.zip "
            "again."
        )
    return pairs


def count_components(path: Path, min_area: float) -> int:
    """Components of a mask file that hold at least `min_area` of its foreground; 0 where there is none.

    Raises:
        ValueError: OpenCV cannot read the file.
    """
    # Not cv2.imread, which cannot open paths with non-ASCII characters on every system.
    data = np.fromfile(path, np.uint8)
    mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if mask is None:
        raise ValueError(f"Mask '{path}' is damaged. Unpack DUTS-TR.zip again.")
    foreground = (mask > FOREGROUND).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(foreground, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    return int((areas >= min_area * areas.sum()).sum())


def already_done(folders: list[Path], chosen: list[tuple[Path, Path]]) -> bool:
    """Whether both folders exist and hold these files.

    Raises:
        ValueError: one holds other files, e.g. the published list, which must not be overwritten.
    """
    for index, folder in enumerate(folders):
        if folder.exists():
            wanted = {pair[index].name for pair in chosen}
            differing = {path.name for path in folder.iterdir()} ^ wanted
            if differing:
                raise ValueError(
                    f"'{folder}' holds another list: {len(differing)} files differ, e.g. '{min(differing)}'. It may be "
                    "the published one; move it away to build this one."
                )
    return all(folder.exists() for folder in folders)


def copy_once(source: Path, target: Path) -> None:
    """Copy a file unless it is there; a file that exists is whole."""
    if not target.exists():
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(target)


if __name__ == "__main__":
    sys.exit(main())
