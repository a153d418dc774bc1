"""Where registered data sets come from: the files that decide what they hold, and each of them as a COCO json."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from boxsup_d2.data.formats.coco import coco_subset, read_coco_json, without_masks
from boxsup_d2.data.paths import require_path
from boxsup_d2.masks.rle import area
from boxsup_d2.masks.segmentation import to_rle

# Keys of an object that are COCO's own or are converted; every other one is passed on.
_CONVERTED = ("id", "bbox", "bbox_mode", "category_id", "iscrowd", "segmentation", "area")


class DatasetSource:
    """Source of a registered data set; this class, of one whose dicts are all that is known.

    Registrations of this package keep theirs in the metadata as ``source``; :func:`dataset_source` gives any set's.
    """

    def __init__(self, name: str, files: Callable[[], Sequence[str]] = tuple):
        """``files`` returns what :meth:`files` lists."""
        self.name = name
        self._files = files

    @property
    def json_file(self) -> str | None:
        """The COCO json that its annotations are in; None where there is none."""
        return None

    def files(self) -> list[str]:
        """Files and folders whose content decides what it holds; of a folder, the names in it. None is opened.

        Images, and VOC's thousands of XML files, are not among them.
        """
        return list(self._files())

    def to_coco(self) -> dict[str, Any]:
        """See :func:`dataset_to_coco`."""
        metadata = MetadataCatalog.get(self.name)
        if metadata.get("thing_classes") is None:
            raise ValueError(f"Data set '{self.name}' has no boxes: it cannot be written as a COCO json.")
        contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {
            index + 1: index for index in range(len(metadata.thing_classes))
        }
        category_ids = {index: key for key, index in contiguous.items()}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in DatasetCatalog.get(self.name):
            if not {"annotations", "height", "width"} <= record.keys():
                raise ValueError(f"Data set '{self.name}' has no boxes or no image sizes: '{record['file_name']}'.")
            images.append(
                {
                    "id": record["image_id"],
                    "file_name": _relative(record["file_name"], metadata.get("image_root")),
                    "height": record["height"],
                    "width": record["width"],
                }
            )
            for obj in record["annotations"]:
                annotation = _annotation(obj, record, category_ids)
                annotation.setdefault("id", len(annotations) + 1)
                annotations.append(annotation)
        return {
            "info": {"description": f"{self.name}, converted from its own format"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": category_ids[index], "name": name} for index, name in enumerate(metadata.thing_classes)
            ],
        }


class CocoSource(DatasetSource):
    """A data set that is read from a COCO json."""

    def __init__(
        self,
        name: str,
        json_file: Callable[[], str],
        *,
        masks: bool,
        classes: Mapping[int, str] | None = None,
        only_classes: bool = False,
        files: Callable[[], Sequence[str]] = tuple,
    ):
        """
        Args:
            name: of the data set.
            json_file: returns the path of the json.
            masks: whether the masks in the json are the data set's; if not, nothing that comes from them gets out.
            classes: category id → name, where the data set has these whatever the json lists; None: the json's.
            only_classes: objects of other classes are not the data set's, nor images without an object.
            files: further files, see :class:`DatasetSource`.
        """
        super().__init__(name, files)
        self._json_file = json_file
        self._masks = masks
        self._classes = dict(classes or {})
        self._only_classes = only_classes

    @property
    def json_file(self) -> str:
        """The json."""
        return self._json_file()

    def files(self) -> list[str]:
        """The json, and what the registration adds."""
        return [self.json_file, *super().files()]

    def to_coco(self) -> dict[str, Any]:
        """See :func:`dataset_to_coco`."""
        data = read_coco_json(self.json_file, self.name)
        if self._only_classes:
            data = coco_subset(data, self._classes)
        if not self._masks:
            data = without_masks(data)
        # Also those that this json leaves out, or classes would be numbered otherwise in the file that is made of it.
        present = [category.get("id") for category in data["categories"]]
        absent = [{"id": key, "name": self._classes[key]} for key in sorted(self._classes) if key not in present]
        return {**data, "categories": data["categories"] + absent}


def dataset_source(name: str) -> DatasetSource:
    """The source of any registered data set; nothing is opened.

    Of sets that this package did not register, Detectron2's ``coco_2017_train`` and ``voc_2007_trainval`` among them,
    it is made of the metadata that Detectron2's registrations leave.

    Raises:
        KeyError: no such data set is registered.
    """
    if name not in DatasetCatalog:
        raise KeyError(f"Data set '{name}' is not registered.")
    metadata = MetadataCatalog.get(name)
    source = metadata.get("source")
    if isinstance(source, DatasetSource):
        return source
    files = [metadata.panoptic_json] if metadata.get("panoptic_json") else []
    if metadata.get("dirname") and metadata.get("split") and metadata.get("year"):
        files.append(os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt"))
    json_file = metadata.get("json_file")
    if json_file:
        return CocoSource(name, lambda: json_file, masks=True, files=lambda: files)
    return DatasetSource(name, lambda: files)


def require_data_set(name: str) -> None:
    """Find that a data set is not there before the hours of work that it is needed after.

    Looked for are its list or json and the folder of its images, of sets that this package registered and of
    Detectron2's with boxes; which files others read is not known.

    Raises:
        KeyError: no such data set is registered.
        FileNotFoundError: names the first that is missing.
    """
    source, metadata = dataset_source(name), MetadataCatalog.get(name)
    if metadata.get("source") is not source and metadata.get("evaluator_type") not in ("coco", "pascal_voc"):
        return
    root = metadata.get("image_root")  # first: where pseudo masks tell it, their file is missed in words of their own
    for path in (*source.files(), *filter(None, [root])):
        if "://" not in path:
            require_path(path, name)


def dataset_to_coco(name: str) -> dict[str, Any]:
    """A data set as a COCO json.

    A set that was loaded from a json gives that json, unknown fields and crowd regions included; of a box-only set
    all but the crowd regions come without ``segmentation`` and with w·h as ``area``, as if the file had never held a
    mask. A set of some of a json's classes gives what the json has of these.

    Any other set is converted: the ids of images and annotations stay (unlike in Detectron2's
    ``convert_to_coco_dict``), file names are relative to the metadata's ``image_root``, boxes become x, y, w, h, and
    ``area`` is that of the mask, or of the box where there is none.

    Args:
        name: of a registered data set with boxes.

    Raises:
        KeyError: no such data set is registered.
        FileNotFoundError: its files are missing.
        ValueError: its images have no annotations or no size.
    """
    return dataset_source(name).to_coco()


def _relative(file_name: str, image_root: str | None) -> str:
    if image_root is None:
        return file_name
    return os.path.relpath(file_name, image_root).replace(os.sep, "/")


def _annotation(obj: dict[str, Any], record: dict[str, Any], category_ids: dict[int, int]) -> dict[str, Any]:
    x, y, width, height = BoxMode.convert([float(v) for v in obj["bbox"]], obj["bbox_mode"], BoxMode.XYWH_ABS)
    annotation = {
        **({"id": obj["id"]} if "id" in obj else {}),
        "image_id": record["image_id"],
        "category_id": category_ids[obj["category_id"]],
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(obj.get("iscrowd", 0)),
        **{key: value for key, value in obj.items() if key not in _CONVERTED},
    }
    segmentation = obj.get("segmentation")
    if segmentation is not None:
        annotation["segmentation"] = segmentation
        if isinstance(segmentation, dict):
            annotation["segmentation"] = to_rle(segmentation, record["height"], record["width"])
            annotation["area"] = float(area(annotation["segmentation"], record["height"], record["width"]))
    return annotation
