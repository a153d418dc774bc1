"""Results of a labelling that is under way: one line of json per image, appended by every rank to a file of its own.

A run never touches the files of an earlier one, so a line that a kill tore off cannot spoil what follows it, and any
number of ranks can resume what any other number left.
"""

import json
import logging
import os
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from boxsup_d2.masks.merge import MergedInstance
from boxsup_d2.utils.files import explain_unwritable, strict_json

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl"

# What a line of json is read as.
R = TypeVar("R")


class ShardWriter:
    """Appends finished images; what :meth:`append` returned from survives the death of the process.

    Args:
        folder: of the labelling.
        name: of the file, new in this run.
    """

    def __init__(self, folder: str, name: str):
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, name + _SUFFIX)
        # Without a buffer of its own: a line is the kernel's as soon as it is written.
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, image_id: Any, record: Mapping[str, Any]) -> None:
        """Write one image.

        Args:
            image_id: of the data set.
            record: its results, such as :func:`mask_record` makes; as json can hold them.

        Raises:
            OSError: e.g. the disk is full; earlier lines stay valid.
        """
        line = (strict_json({"image_id": image_id, **record}, separators=(",", ":")) + "\n").encode()
        with explain_unwritable(self.path, "Images that are already labelled are not labelled again."):
            written = 0
            while written < len(line):  # a nearly full disk takes a part of it first
                written += self._file.write(line[written:]) or 0

    def close(self) -> None:
        """Force everything to the disk; may be called twice."""
        if not self._file.closed:
            with explain_unwritable(self.path, "Images that are already labelled are not labelled again."):
                os.fsync(self._file.fileno())
            self._file.close()


class _Place(NamedTuple):
    shard: int
    offset: int
    length: int


class ShardIndex(ABC, Generic[R]):
    """Where the results of which image lie. Results themselves stay on the disk; subclasses say what they are.

    Args:
        folder: of the labelling; may be absent.
        cache_size: images whose results are held in memory.
    """

    def __init__(self, folder: str, cache_size: int = 1024):
        self.bytes = 0
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        self._paths = [os.path.join(folder, name) for name in names if name.endswith(_SUFFIX)]
        self._places: dict[Any, _Place] = {}
        self._cache: OrderedDict[Any, R] = OrderedDict()
        self._cache_size = cache_size
        for shard, path in enumerate(self._paths):
            self._scan(shard, path)

    @property
    def image_ids(self) -> set[Any]:
        """Images that are done."""
        return set(self._places)

    def _scan(self, shard: int, path: str) -> None:
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                image_id, result = self._parse(line)
                if result is None:
                    logger.warning("'%s' ends in a torn line (an interrupted run): its image is labelled again", path)
                elif image_id not in self._places:
                    self._places[image_id] = _Place(shard, offset, len(line))
                    self.bytes += len(line)
                    self.note(result)
                offset += len(line)

    def note(self, result: R) -> None:
        """Take an image into the statistics; called once for each."""

    @abstractmethod
    def read(self, record: dict[str, Any]) -> R:
        """Results out of a line's json.

        Raises:
            ValueError, KeyError, TypeError: the line is damaged.
        """

    def find(self, image_id: Any) -> R | None:
        """Results of an image; None where there are none."""
        place = self._places.get(image_id)
        if place is None:
            return None
        if image_id not in self._cache:
            with open(self._paths[place.shard], "rb") as file:
                file.seek(place.offset)
                result = self._parse(file.read(place.length))[1]
            if result is None:
                return None
            self._cache[image_id] = result
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return self._cache[image_id]

    def _parse(self, line: bytes) -> tuple[Any, R | None]:
        """Image id and results of a line; (None, None) where it is torn."""
        if not line.endswith(b"\n"):
            return None, None
        try:
            record = json.loads(line)
            return record["image_id"], self.read(record)
        except (ValueError, KeyError, TypeError):
            return None, None


def mask_record(annotation_ids: Sequence[Any], instances: Sequence[MergedInstance]) -> dict[str, Any]:
    """Results of one image for :meth:`ShardWriter.append`: merged masks by annotation id."""
    return {
        "masks": [[annotation_id, *merged] for annotation_id, merged in zip(annotation_ids, instances, strict=True)]
    }


class MaskShardIndex(ShardIndex[dict[Any, MergedInstance]]):
    """Masks by annotation id, with the statistics of their numbers; arguments as :class:`ShardIndex`."""

    def __init__(self, folder: str, cache_size: int = 1024):
        self.empty = 0
        self.confidences = array("d")
        self.confidences_exact = array("d")
        self.qualities = array("d")
        super().__init__(folder, cache_size)

    def note(self, result: dict[Any, MergedInstance]) -> None:
        self.empty += sum(merged.area == 0 for merged in result.values())
        self.confidences.extend(merged.confidence for merged in result.values())
        self.confidences_exact.extend(merged.confidence_exact for merged in result.values())
        self.qualities.extend(merged.quality for merged in result.values())

    def read(self, record: dict[str, Any]) -> dict[Any, MergedInstance]:
        return {mask[0]: MergedInstance(*mask[1:]) for mask in record["masks"]}

    def get(self, image_id: Any) -> dict[Any, MergedInstance]:
        """Results of an image by annotation id; empty where there are none."""
        return self.find(image_id) or {}
