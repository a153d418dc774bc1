"""True masks of a registered data set, by image: what the evaluators compare with.

Reads Detectron2's standard dataset dicts and nothing else: ``segmentation`` as polygons, or as compressed or
uncompressed RLE, and the optional ``void_mask`` (RLE) of an image, the pixels whose label is unknown.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from boxsup_d2.masks.rle import decode


@dataclass(frozen=True)
class ImageTruth:
    """One image's objects.

    Attributes:
        image_id: As in the dataset dict.
        file_name: Path of the image, for messages.
        height, width: Of the original image, in pixels.
        annotations: Its annotations, crowd regions left out, in the order of the data set: the i-th prompt is the
            box of the i-th of them.
        void: RLE of the pixels whose label is unknown, or None.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]]
    void: dict[str, Any] | None

    def mask(self, index: int) -> np.ndarray:
        """Mask of the index-th annotation, (height, width) bool.

        Raises:
            ValueError: If it has another size than the image.
        """
        return self.decode(self.annotations[index]["segmentation"])

    def void_mask(self) -> np.ndarray | None:
        """(height, width) bool, or None where every pixel has a label."""
        return None if self.void is None else self.decode(self.void)

    def check_has_masks(self) -> None:
        """
        Raises:
            ValueError: If an object has no mask.
        """
        for index, annotation in enumerate(self.annotations):
            if not annotation.get("segmentation"):
                raise ValueError(
                    f"Annotation {index} of image {self.image_id} ('{self.file_name}') has no mask to compare with. "
                    "Evaluate on a data set with masks, e.g. voc_2012_val_instance or coco_2017_val."
                )

    def decode(self, segmentation: list[Any] | dict[str, Any]) -> np.ndarray:
        """A COCO ``segmentation`` of this image as (height, width) bool.

        Raises:
            ValueError: If it cannot be read, or has another size than the image.
        """
        try:
            return decode(segmentation, self.height, self.width).T
        except ValueError as error:
            raise ValueError(
                f"A mask of image {self.image_id} ('{self.file_name}') does not belong to it: {error} The "
                "annotation is damaged, or made for another version of the image."
            ) from error


def load_ground_truth(dataset_name: str) -> dict[int | str, ImageTruth]:
    """Every image of a registered data set by its id, in the order of the data set.

    Raises:
        ValueError: If two images share an id.
    """
    truths: dict[int | str, ImageTruth] = {}
    for record in DatasetCatalog.get(dataset_name):
        image_id = record["image_id"]
        if image_id in truths:
            raise ValueError(f"Data set '{dataset_name}' holds image id {image_id} twice: ids must be unique.")
        truths[image_id] = ImageTruth(
            image_id=image_id,
            file_name=record.get("file_name", ""),
            height=record["height"],
            width=record["width"],
            annotations=[a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)],
            void=record.get("void_mask"),
        )
    return truths
