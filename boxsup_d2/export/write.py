"""Export, and the check that what was written gives what the network gives."""

import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor

from boxsup_d2.data.images import read_image
from boxsup_d2.export.windows import WindowNetwork, window_network
from boxsup_d2.methods import file_config, load_model, method_config, methods
from boxsup_d2.prediction.network import find_config
from boxsup_d2.utils.files import atomic_write

__all__ = ["export_network"]

# How far probabilities, and boxes as a share of the image, may be from the network's.
_TOLERANCE = 1e-3
# The newest that torch's exporter without further packages writes, and that runtimes of the last years read.
_OPSET = 17
_FACTS = "boxsup_d2.json"

# Runs what was written on tensors.
_Runner = Callable[..., Sequence[Tensor]]


def export_network(
    model: str | os.PathLike,
    out: str | os.PathLike,
    image: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    opts: Sequence[Any] = (),
) -> str:
    """Write a trained network as ONNX (``.onnx``) or TorchScript (``.pt``).

    Box-to-mask networks take the windows around boxes, see :mod:`boxsup_d2.export.windows`. A Mask R-CNN, as
    TorchScript alone, takes a 3×H×W image (0..255), resized as its config says, and gives N×4 boxes in its pixels, N
    classes, N scores and N×1×h×h mask probabilities within the boxes. What is needed to make these inputs is in the
    file: as metadata, in TorchScript the extra file ``boxsup_d2.json``.

    Args:
        model: name of a method, folder of a training, checkpoint or config.
        out: file to write.
        image: photograph that both networks must agree on.
        weights: a checkpoint; default: those that ship with the method, or lie beside the config.
        opts: config overrides, ``[KEY, VALUE, ...]``.

    Returns:
        What was written, and how well it agrees, for people.

    Raises:
        FileNotFoundError: model, weights or image are missing.
        ValueError: such a network or format cannot be written.
        RuntimeError: the outputs differ; nothing is written.
        ImportError: a package is missing that writes the format.
    """
    path = os.path.expanduser(os.fspath(out))
    kind = os.path.splitext(path)[1].lower()
    if kind not in (".onnx", ".pt"):
        raise ValueError(f"'{path}': name a file that ends in .onnx or .pt (TorchScript).")
    name = os.path.expanduser(os.fspath(model))
    if name in methods():
        given = None if weights is None else os.path.expanduser(os.fspath(weights))
        cfg = method_config(name, given, None, opts, "cpu")
    else:
        cfg = file_config(*find_config(name, weights), opts, "cpu")
    pixels = read_image(os.path.expanduser(os.fspath(image)), cfg.INPUT.FORMAT)
    network = load_model(cfg)
    examples: list[tuple[Tensor, ...]]
    if isinstance(network, GeneralizedRCNN):
        if kind == ".onnx":
            raise ValueError(f"'{path}': a Mask R-CNN is written as TorchScript: name a file that ends in .pt.")
        resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        resized = resize.get_transform(pixels).apply_image(pixels)
        whole = torch.from_numpy(resized.transpose(2, 0, 1).copy()).float()
        # Of another shape, too: what tracing took for constant would show.
        examples = [(whole,), (whole[:, : whole.shape[1] * 3 // 4].contiguous(),)]
        facts = {
            "channels": cfg.INPUT.FORMAT,
            "shortest_side": str(cfg.INPUT.MIN_SIZE_TEST),
            "longest_side": str(cfg.INPUT.MAX_SIZE_TEST),
        }
        content, difference = _export_rcnn(network, examples, facts)
    else:
        windows = window_network(network, cfg.INPUT.FORMAT)
        height, width = pixels.shape[:2]
        boxes = [(width * s, height * s, width * (1 - s), height * (1 - s)) for s in (0.0, 0.2, 0.35)]
        examples = [windows.example(pixels, boxes), windows.example(pixels, boxes[1:2])]
        content, difference = (_export_onnx if kind == ".onnx" else _export_script)(windows, examples)
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"The outputs of what was to be written differ from the network's by {difference:.2g} on '{image}', more "
            f"than {_TOLERANCE}: nothing is written."
        )
    with atomic_write(path, binary=True) as file:
        file.write(content)
    return f"{type(network).__name__} -> '{path}', {len(content) / 1e6:.1f} MB; largest difference {difference:.1g}"


def _export_onnx(windows: WindowNetwork, examples: list[tuple[Tensor, ...]]) -> tuple[bytes, float]:
    """The file, and its largest difference from the network."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}, which is not installed: pip install 'boxsup_d2[onnx]'.") from error
    names = [*windows.input_names, *windows.output_names]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet_tracing(), _short_errors():
        written = os.path.join(folder, "network.onnx")
        torch.onnx.export(
            windows,
            examples[0],
            written,
            dynamo=False,  # the other exporter needs a package more
            opset_version=_OPSET,
            input_names=list(windows.input_names),
            output_names=list(windows.output_names),
            dynamic_axes={name: {0: "windows"} for name in names},
        )
        model = onnx.load(written)
    onnx.helper.set_model_props(model, windows.facts)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(windows.input_names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, fed)]

    return content, _window_difference(windows, run, examples)


def _export_script(windows: WindowNetwork, examples: list[tuple[Tensor, ...]]) -> tuple[bytes, float]:
    with torch.no_grad(), _quiet_tracing():
        content, run = _saved(torch.jit.trace(windows, examples[0], check_trace=False), windows.facts)
    return content, _window_difference(windows, run, examples)


def _export_rcnn(
    network: GeneralizedRCNN, examples: list[tuple[Tensor, ...]], facts: dict[str, str]
) -> tuple[bytes, float]:
    try:
        from detectron2.export.flatten import TracingAdapter
    except ImportError as error:
        raise ImportError(
            f"This installation of Detectron2 cannot export ({error}): install one by tools/install_detectron2.py."
        ) from error

    def detect(model: GeneralizedRCNN, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        found = model.inference(inputs, do_postprocess=False)[0]
        masks = (found.pred_masks,) if found.has("pred_masks") else ()
        return (found.pred_boxes.tensor, found.pred_classes, found.scores, *masks)

    adapter = TracingAdapter(network, [{"image": examples[0][0]}], detect)
    with torch.no_grad(), _quiet_tracing():
        content, run = _saved(torch.jit.trace(adapter, examples[0], check_trace=False), facts)
        difference = 0.0
        for (image,) in examples:
            expected, found = detect(network, [{"image": image}]), run(image)
            if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
                return content, float("inf")
            scales = (max(image.shape[1:]), 1, 1, 1)
            for a, b, scale in zip(expected, found, scales, strict=False):
                difference = max(difference, float((a - b).abs().max()) / scale if a.numel() else 0.0)
    return content, difference


def _saved(traced: Any, facts: dict[str, str]) -> tuple[bytes, _Runner]:
    """A traced network as a file, and the network that is read back from it."""
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={_FACTS: json.dumps(facts)})
    content = buffer.getvalue()
    read = torch.jit.load(io.BytesIO(content))

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        found = read(*inputs)
        return [found] if isinstance(found, Tensor) else found

    return content, run


@torch.no_grad()
def _window_difference(windows: WindowNetwork, run: _Runner, examples: list[tuple[Tensor, ...]]) -> float:
    """Largest difference of probabilities."""
    largest = 0.0
    for example in examples:
        outputs = windows(*example)
        expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        found = list(run(*example))
        expected[0], found[0] = expected[0].sigmoid(), found[0].sigmoid()
        largest = max([largest, *(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))])
    return largest


@contextlib.contextmanager
def _short_errors() -> Iterator[None]:
    """Torch's exporter tells the whole network where it fails."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise RuntimeError(
            f"Torch cannot write this network as ONNX ({type(error).__name__}: {reason}): name a file that ends in .pt."
        ) from error


@contextlib.contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Tracing warns of every number that it takes for constant; the check shows whether one was not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
