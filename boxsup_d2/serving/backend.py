"""What Label Studio asks of a model, and the answers: https://labelstud.io/guide/ml_create.

Dicts in, dicts out; :mod:`.server` brings them over the network.
"""

import threading
import uuid
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from boxsup_d2.api import BoxToMask
from boxsup_d2.data.formats.drawn import Shape
from boxsup_d2.data.formats.label_studio import brush_region, task_picture, task_regions, task_shapes
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.data.formats.rotated_boxes import ROTATED_BOX, turned_box
from boxsup_d2.serving.images import TaskImages

_KIND = "rectanglelabels"


class _Brush(NamedTuple):
    """The control of a labelling interface that takes masks.

    Attributes:
        name, picture: names of the control and of its picture.
        key: under which a task's ``data`` have the picture; "" where the interface does not say.
        labels: of the control; empty where they come with the tasks.
    """

    name: str
    picture: str
    key: str
    labels: list[str]


class LabelStudioBackend:
    """Turns the boxes of tasks into masks.

    Attributes:
        version: what predictions are said to be of.
    """

    def __init__(self, model: BoxToMask, images: TaskImages, version: str):
        self.version = version
        self._model = model
        self._images = images
        self._lock = threading.Lock()  # one prediction at a time

    def health(self) -> dict[str, Any]:
        """Answer to ``/health``."""
        return {"status": "UP", "model_class": type(self._model.model).__name__}

    def setup(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer to ``/setup``, which connects a project.

        Raises:
            ValueError: its labelling interface (``schema``) takes no masks.
        """
        if request.get("schema"):
            _brush(request["schema"])
        return {"model_version": self.version}

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer to ``/predict``.

        Args:
            request: ``tasks``, ``label_config`` and, where somebody has just drawn something, ``params`` with the
                regions in ``context.result``. Without these a task's own boxes count: of its last annotation, else
                prediction.

        Returns:
            ``results``, one per task: of drawn boxes their masks, of a task's own ones boxes and masks.

        Raises:
            ValueError: the request, its interface, or an image cannot be used.
            FileNotFoundError, OSError: an image is not there.
        """
        tasks = request.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise ValueError("The request has no list of tasks: this speaks the protocol of Label Studio's models.")
        brush = _brush(request.get("label_config"))
        params = request.get("params")
        context = (params if isinstance(params, dict) else {}).get("context") or request.get("context")
        drawn = context.get("result") if isinstance(context, dict) else None
        return {
            "results": [self._masks(task, brush, drawn if isinstance(drawn, list) else None) for task in tasks],
            "model_version": self.version,
        }

    def _masks(self, task: dict[str, Any], brush: _Brush, drawn: list[Any] | None) -> dict[str, Any]:
        data = task.get("data")
        named = data.get(brush.key) if isinstance(data, dict) else None
        picture = named if isinstance(named, str) else task_picture(data) if isinstance(data, dict) else None
        if picture is None:
            raise ValueError(f"Task {task.get('id')} names no image.")
        found = list(task_regions(task, picture, Problems())) if drawn is None else drawn
        boxes = [region for region in found if isinstance(region, dict) and region.get("type") == _KIND]
        regions: list[dict[str, Any]] = []
        quality = 0.0
        if boxes:
            image = self._images.read(picture)
            shapes = _shapes(boxes, image, picture, brush)
            with self._lock:
                prediction = self._model.predict(image, _prompts(shapes), [shape.label for shape in shapes])
            quality = float(prediction.quality.mean())
            for box, shape, mask in zip(boxes, shapes, prediction.masks, strict=True):
                key = str(box.get("id") or uuid.uuid4().hex[:10])
                if drawn is None:
                    regions.append({**box, "id": key})
                else:  # Label Studio has the box, and may drop it
                    key = uuid.uuid4().hex[:10]
                if mask.any():
                    where = {"control": brush.name, "picture": brush.picture}
                    regions.append(brush_region(mask, shape.label, key, of_box=drawn is None, **where))
        return {"result": regions, "score": quality, "model_version": self.version}


def _shapes(regions: list[dict[str, Any]], image: np.ndarray, picture: str, brush: _Brush) -> list[Shape]:
    problems, (height, width) = Problems(), image.shape[:2]
    shapes = [
        shape for region in regions for shape in task_shapes(region, height, width, problems, Problems(), picture)
    ]
    if len(shapes) < len(regions):
        raise ValueError(f"{len(regions) - len(shapes)} boxes on '{picture}' have no label or no numbers. {problems}")
    unknown = sorted({shape.label for shape in shapes} - set(brush.labels)) if brush.labels else []
    if unknown:
        raise ValueError(f"<BrushLabels> '{brush.name}' has no label '{unknown[0]}': give it those of the boxes.")
    return shapes


def _prompts(shapes: list[Shape]) -> list[list[float]]:
    """Boxes as :meth:`BoxToMask.predict` takes them."""
    boxes = [shape.box for shape in shapes if shape.box is not None]
    if any(ROTATED_BOX in shape.fields for shape in shapes):
        return [shape.fields.get(ROTATED_BOX) or turned_box(b, 0) for shape, b in zip(shapes, boxes, strict=True)]
    return [[x, y, x + w, y + h] for x, y, w, h in boxes]


def _brush(config: Any) -> _Brush:
    """The first control for masks of a labelling interface.

    Raises:
        ValueError: there is none.
    """
    try:
        root: Element = fromstring(config if isinstance(config, str) else "")
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise ValueError(f"The labelling interface is no XML ({error}).") from error
    control = next(root.iter("BrushLabels"), None)
    if control is None or not control.get("name") or not control.get("toName"):
        raise ValueError(
            "The labelling interface has no <BrushLabels>, which takes the masks: add it beside <RectangleLabels>, or "
            "use the config.xml that 'boxsup label --label-studio' writes."
        )
    labels = [label.get("value", "").strip() for label in control.iter("Label")]
    picture = next((image for image in root.iter("Image") if image.get("name") == control.get("toName")), None)
    key = "" if picture is None else picture.get("value", "").lstrip("$")
    return _Brush(control.get("name", ""), control.get("toName", ""), key, labels)
