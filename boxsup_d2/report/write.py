"""Write a report: draw every image, compute the metrics, fill in the page.

A page of few images holds its pictures; those of many images are in a folder beside the page.
"""

import base64
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace

from boxsup_d2.data.paths import missing_files, outside_names, require_images
from boxsup_d2.report.mask_sets import MaskSet, load_collection
from boxsup_d2.report.page import page_content, render_page
from boxsup_d2.report.render import Rendered, Renderer, render_scenes
from boxsup_d2.utils.files import atomic_write, explain_unwritable
from boxsup_d2.utils.progress import track

logger = logging.getLogger(__name__)

# File that marks a report's picture folder. A folder without it is not replaced.
_MARK = ".boxsup_d2_report"


def write_report(
    mask_sets: Sequence[MaskSet],
    image_root: str,
    out: str,
    *,
    truth: str | None = None,
    title: str = "Masks",
    max_embedded: int = 300,
    max_images: int | None = None,
    thumbnail: int = 320,
    progress: bool = True,
    keep_going: bool = False,
    outside_images: bool = False,
) -> str:
    """Write a page that shows the masks of one file, or of several beside each other.

    The page shows the images and objects of the first file; those of the other files are matched with them by id, else
    by file name and box. It lists missing masks and images that cannot be read.

    Args:
        mask_sets: COCO jsons with masks, or manifests of label maps.
        image_root: folder that the first file's image names are relative to.
        out: path of the page; ``.html`` is appended where it is missing.
        truth: COCO json with true masks, to measure IoU with.
        title: of the page.
        max_embedded: with more images than that, the pictures are written to the folder ``<name>_files`` beside the
            page instead of into it.
        max_images: limit of images, spread evenly from the first file's worst to its best masks; None shows all.
        thumbnail: longer side in pixels of the pictures of whole images, at least 32; objects get three quarters of it.
        progress: show a progress bar.
        keep_going: show images that are missing, or lie outside of ``image_root``, in grey and list them; images that
            are damaged are shown so in any case. All of them may not be missing.
        outside_images: also show images that names or links of the first file lead to outside of ``image_root``.

    Returns:
        Path of the page. It holds no path of this machine, but for what files, sets and title are called.

    Raises:
        FileNotFoundError: a file, or images of it, do not exist.
        ValueError: a file is damaged or of another kind than the others, its images lie outside of ``image_root``, or
            ``thumbnail`` is too small.
        FileExistsError: the folder for the pictures exists and was not made by a report.
        OSError: the page cannot be written.
    """
    if thumbnail < 32:
        raise ValueError(f"Thumbnails of {thumbnail} pixels show nothing: use 32 or more.")
    path = out if out.lower().endswith((".html", ".htm")) else f"{out}.html"
    collection = load_collection(mask_sets, truth).sampled(max_images)
    names = [scene.file_name for scene in collection.scenes]
    outside = set() if outside_images else outside_names(image_root, names)
    if outside and not keep_going:
        raise ValueError(
            f"{len(outside)} of the {len(names)} images of '{mask_sets[0].path}' lie outside of '{image_root}', first "
            f"'{min(outside)}': --outside-images (outside_images=True) shows them, if you trust the file."
        )
    paths = [os.path.join(image_root, name) for name in names]
    if not keep_going or len(missing_files(paths)) == len(paths):
        require_images(
            paths,
            mask_sets[0].name,
            fix=f"Give the folder that the file names in '{mask_sets[0].path}' are relative to.",
        )
    renderer = Renderer(image_root, len(collection.sets), collection.has_truth, thumbnail, frozenset(outside))
    drawn = render_scenes(renderer, collection.scenes)
    scenes = track(drawn, "report", len(collection.scenes), shown=progress)
    folder = f"{os.path.splitext(os.path.abspath(path))[0]}_files"
    embedded = len(collection.scenes) <= max_embedded
    with explain_unwritable(path), _PictureStore(folder, embedded=embedded) as store:
        measured = store.take_all(scenes)
        content = page_content(collection, measured, title, "" if embedded else os.path.basename(folder))
        with atomic_write(path) as file:
            for piece in render_page(content, store.embedded):
                file.write(piece)
    logger.info("Wrote '%s': %d of %d images", path, len(collection.scenes), collection.total)
    return path


class _PictureStore:
    """Takes pictures as they are drawn: keeps them as base64, or writes them to a folder.

    The folder gets its name, and replaces that of a former report, just before the page is written. If something fails
    before, the former report is unchanged.
    """

    def __init__(self, folder: str, *, embedded: bool):
        """
        Args:
            folder: for the pictures, where they are not embedded.
            embedded: keep them in :attr:`embedded`, by name.

        Raises:
            FileExistsError: the folder exists, and is no report's.
        """
        self.embedded: dict[str, str] = {}
        self._folder = folder
        self._partial = None if embedded else f"{folder}.partial"
        if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, _MARK)):
            if not embedded:
                raise FileExistsError(
                    f"The pictures would go to '{folder}', which exists and was not made by a report: remove it, or "
                    "give the page another name."
                )
            self._folder = ""

    def __enter__(self) -> "_PictureStore":
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            for name in ("images", "objects"):
                os.makedirs(os.path.join(self._partial, name))
            with open(os.path.join(self._partial, _MARK), "w", encoding="utf-8"):
                pass
        return self

    def __exit__(self, *failure: object) -> None:
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def take_all(self, scenes: Iterable[Rendered]) -> list[Rendered]:
        """Store the pictures of all images; returns the rest."""
        measured, objects = [], 0
        for number, scene in enumerate(scenes):
            for column, data in enumerate(scene.views):
                self._take(f"images/{number}-{column}", data)
            for crops in scene.crops:
                for column, data in enumerate(crops):
                    self._take(f"objects/{objects}-{column}", data)
                objects += 1
            measured.append(replace(scene, views=[], crops=[]))
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._partial is not None:
            os.rename(self._partial, self._folder)
        return measured

    def _take(self, name: str, data: bytes) -> None:
        if self._partial is None:
            self.embedded[name] = base64.b64encode(data).decode("ascii")
            return
        with open(os.path.join(self._partial, f"{name}.jpg"), "wb") as file:
            file.write(data)
