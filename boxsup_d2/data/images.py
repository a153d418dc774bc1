"""Fast, strict reading of images, as 8 bits, and of label maps; every mapper reads through this module.

OpenCV decodes a JPEG about 1.6 times as fast as the Pillow route of ``detectron2.data.detection_utils``. Whatever
OpenCV cannot or should not judge (GIF, odd modes, a JPEG that ends too early) goes through Detectron2's reader, so
both accept the same files, but for PNGs whose checksums say that they are damaged. Both turn the image as its EXIF
orientation says, and stretch images of more than 8 bits in the same way (:func:`stretch`). An alpha channel is left
out.
"""

import contextlib
import errno
import io
import os
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

_CV2_FLAGS = {"BGR": cv2.IMREAD_COLOR, "RGB": cv2.IMREAD_COLOR, "L": cv2.IMREAD_GRAYSCALE}
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_DEEP_MODES = ("I", "F")  # how the names of Pillow's modes of more than 8 bits begin
_PNG_DEPTH_BYTE, _TIFF_DEPTH_TAG, _TIFF_CHANNELS_TAG = 24, 258, 277
# Percentiles of an image of more than 8 bits that become black and white: sensors of 10 to 14 bits fill a small part of
# their 16, and a few dead or glowing pixels would take most of the range. Of so many pixels at most.
_BLACK, _WHITE, _SAMPLES = 0.5, 99.5, 1 << 20
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Cameras and archivers append a little behind the end; further back it is looked for in the whole file.
_TAIL_BYTES = 4096
# EXIF's orientations that exchange height and width.
_ORIENTATION_TAG, _TURNED = 0x0112, (5, 6, 7, 8)


class ImageHeader(NamedTuple):
    """What the header of an image says: ``height`` and ``width``, upright, and ``deep``: more than 8 bits a channel."""

    height: int
    width: int
    deep: bool


def is_leftover(name: str) -> bool:
    """Whether a file or folder, by its name, is what systems and editors leave behind and no one's data."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


def is_image_name(file_name: str) -> bool:
    """Whether a file is an image, by its name; not what archivers of other systems leave behind ("._0001.jpg")."""
    base = os.path.basename(file_name)
    return base.lower().endswith(_EXTENSIONS) and not is_leftover(base)


def read_image(file_name: str, format: str = "BGR") -> np.ndarray:
    """Read an image as uint8, upright.

    Args:
        file_name: path of a local file.
        format: ``"BGR"``, ``"RGB"`` or ``"L"`` (grey), or any format of Detectron2's ``read_image``.

    Returns:
        H×W×3 array, or H×W×1 for ``"L"``; uint8, 0..255, contiguous. Images of more than 8 bits are stretched.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or no image.
    """
    try:
        with _open(file_name) as file:
            data = file.read()
    except OSError as error:
        raise FileNotFoundError(
            f"Cannot read image '{file_name}' ({error.strerror}). Check DETECTRON2_DATASETS and the data set's files."
        ) from error

    if _is_damaged_png(data):
        raise ValueError(f"Image '{file_name}' is damaged (a checksum is wrong, or its end is missing). Replace it.")
    flag = _CV2_FLAGS.get(format)
    image = None
    if flag is not None and data and not _is_truncated_jpeg(data):
        if data.startswith(_TIFF_STARTS):  # of which OpenCV converts no deep ones from grey to colour or back
            flag = cv2.IMREAD_ANYCOLOR
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_ANYDEPTH)
        except cv2.error:  # e.g. more pixels than OpenCV accepts: Pillow decides
            image = None
    if image is None:
        return _read_with_detectron2(file_name, format)
    image = stretch(image)
    if format == "L":
        return (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[:, :, None]
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if format == "RGB" else image


def stretch(image: np.ndarray, levels: tuple[float, float] | None = None) -> np.ndarray:
    """An image of any numbers as uint8; one of uint8 as it is.

    ``levels`` become 0 and 255, by default its own :func:`grey_levels`. What is no number becomes 0.
    """
    if image.dtype == np.uint8:
        return image
    levels = levels or grey_levels(image)
    if levels is None:
        return np.zeros(image.shape, np.uint8)
    black, white = levels
    # In float32, which holds 24 bits: half of the memory, and far more than is left.
    scaled = (image.astype(np.float32) - np.float32(black)) * np.float32(255 / ((white - black) or 1))
    return np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round().astype(np.uint8)


def grey_levels(image: np.ndarray) -> tuple[float, float] | None:
    """What is to be black and white in an image of any numbers; None where nothing in it is a number.

    The 0.5 and 99.5 percentiles over all channels together; where these are the same number, the least and greatest.
    """
    values = image.reshape(-1)
    sample = values[:: max(1, len(values) // _SAMPLES)]
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return None
    black, white = np.percentile(sample.astype(np.float64), (_BLACK, _WHITE))
    if black == white:
        finite = values[np.isfinite(values)]
        black, white = finite.min(), finite.max()
    return float(black), float(white)


def _open(file_name: str) -> BinaryIO:
    # A pipe would be waited for for ever, and a device has no end.
    if not stat.S_ISREG(os.stat(file_name).st_mode):
        raise OSError(errno.EINVAL, "a folder, pipe or device and no file")
    return open(file_name, "rb")


def _is_truncated_jpeg(data: bytes) -> bool:
    # OpenCV fills what a truncated JPEG lacks with grey and only prints to stderr. Compressed data cannot hold an end
    # marker, so a whole file has one after its last scan header; the one of an EXIF thumbnail lies before it.
    return data.startswith(_JPEG_START) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)


def _is_damaged_png(data: bytes) -> bool:
    # OpenCV prints to stderr and Pillow says nothing where pixels are damaged: both return an image. Every chunk has a
    # checksum; those with a capital letter hold the image.
    if not data.startswith(_PNG_START):
        return False
    start = len(_PNG_START)
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        checksum = zlib.crc32(memoryview(data)[start + 4 : end]).to_bytes(4, "big")
        if name[:1].isupper() and checksum != data[end : end + 4]:
            return True
        if name == _PNG_END:
            return False
        start = end + 4
    return True


def _read_with_detectron2(file_name: str, format: str) -> np.ndarray:
    try:
        with _of_any_size():
            with Image.open(file_name) as opened:
                if opened.mode.startswith(_DEEP_MODES):  # which Detectron2's reader would clip at 255
                    pixels = stretch(np.asarray(detection_utils._apply_exif_orientation(opened)))
                    return np.ascontiguousarray(np.repeat(pixels[:, :, None], 1 if format == "L" else 3, axis=2))
            image = detection_utils.read_image(file_name, format=format)
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to, and an error of their own for
        # images of very many pixels
        raise ValueError(f"Image '{file_name}' is damaged or no image ({error}). Replace or remove it.") from error
    return np.ascontiguousarray(image)


# How many readers are at work that take images of any size, and what Pillow's limit is without them.
_readers, _pillow_limit = 0, Image.MAX_IMAGE_PIXELS
_readers_lock = threading.Lock()


@contextlib.contextmanager
def _of_any_size() -> Iterator[None]:
    """Lift Pillow's limit of pixels, which guards servers against strangers' files: OpenCV's is the larger one."""
    global _readers, _pillow_limit  # noqa: PLW0603 - Pillow's limit is global
    with _readers_lock:
        if not _readers:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _readers += 1
    try:
        yield
    finally:
        with _readers_lock:
            _readers -= 1
            if not _readers:
                Image.MAX_IMAGE_PIXELS = _pillow_limit


def image_size(file_name: str) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` returns it; see :func:`image_header`."""
    return image_header(file_name)[:2]


def image_header(file_name: str) -> ImageHeader:
    """What an image is as :func:`read_image` reads it, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no image, or ends before its data do, as far as that is seen without decoding.
    """
    try:
        with _open(file_name) as file:
            head = file.read(_PNG_DEPTH_BYTE + 1)
            file.seek(0)
            if head.startswith(_TIFF_STARTS):
                height, width, turned, deep = _tiff_header(file)
            else:
                with _of_any_size(), Image.open(file) as image:
                    width, height, turned = *image.size, _orientation(image) in _TURNED
                    deep = image.mode.startswith(_DEEP_MODES)
                # Pillow reads PNGs of three channels of 16 bits as 8.
                deep = deep or (head.startswith(_PNG_START) and head[_PNG_DEPTH_BYTE] > 8)
            if _ends_early(file):
                raise ValueError("the file ends before its image does")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image '{file_name}' does not exist. Check the folder of the images.") from error
    except Exception as error:  # see _read_with_detectron2
        raise ValueError(f"Image '{file_name}' is damaged or no image ({error}). Replace or remove it.") from error
    height, width = (width, height) if turned else (height, width)
    return ImageHeader(int(height), int(width), deep)


def _tiff_header(file: BinaryIO) -> tuple[int, int, bool, bool]:
    """Height and width as stored, whether they are turned, and whether there are more than 8 bits a channel.

    Of the tags, since Pillow opens no TIFF of three deep channels, and turns the size or not, depending on its version.
    """
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    channels = tags.get(_TIFF_CHANNELS_TAG, 1)
    if channels > 4:
        raise ValueError(f"it has {channels} channels: write three of them, or one, as an image of their own")
    deep = max(tags.get(_TIFF_DEPTH_TAG, (1,))) > 8
    return tags[257], tags[256], tags.get(_ORIENTATION_TAG) in _TURNED, deep


def _orientation(image: Image.Image) -> int | None:
    # Pillow decodes a whole PNG in search of EXIF data where its head has none.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return None
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged EXIF data: Detectron2's reader then leaves the image as it is
        return None


def _ends_early(file: BinaryIO) -> bool:
    """Whether a JPEG or PNG lacks its end; only a file without an end marker near its end is read whole."""
    file.seek(0)
    head = file.read(len(_PNG_START))
    if not head.startswith((_JPEG_START, _PNG_START)):
        return False
    file.seek(max(file.seek(0, io.SEEK_END) - _TAIL_BYTES, 0))
    tail = file.read()
    if head == _PNG_START:
        return _PNG_END not in tail and _PNG_END not in _whole(file)
    return _JPEG_END not in tail and _is_truncated_jpeg(_whole(file))


def _whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def read_label_map(file_name: str) -> np.ndarray:
    """Read a PNG whose pixels are numbers of classes or instances, such as VOC's masks: H×W uint8, read-only.

    OpenCV is of no use here: it turns palette indices into colours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or neither a palette image nor a grey one.
    """
    try:
        with _of_any_size(), _open(file_name) as file, Image.open(file) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"its mode is {image.mode}, expected a palette or grey image")
            return np.asarray(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Label map '{file_name}' does not exist. Check DETECTRON2_DATASETS and the data set's files."
        ) from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"Mask '{file_name}' is damaged or no label map ({error}). Unpack or copy it again."
        ) from error


def encode_label_map(labels: np.ndarray) -> bytes:
    """A label map (H×W uint8) as palette PNG in VOC's colours."""
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def voc_palette() -> list[int]:
    """VOC's 256 colours as 768 numbers: the bits of the index, dealt to red, green and blue in turn."""
    palette = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette.flatten().tolist()


class ImageCache:
    """The images that were read last, decoded, for samplers that come back to an image soon."""

    def __init__(self, format: str, max_images: int, max_bytes: int = 256 << 20):
        """
        Args:
            format: see :func:`read_image`.
            max_images: images to keep at most; 0 keeps none.
            max_bytes: memory to use at most, whatever their size; a larger image is read each time.
        """
        self._format = format
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0

    def __call__(self, file_name: str) -> np.ndarray:
        """As :func:`read_image`; the array is shared with later calls and must not be changed."""
        if file_name in self._images:
            self._images.move_to_end(file_name)
            return self._images[file_name]
        image = read_image(file_name, self._format)
        self._images[file_name] = image
        self._bytes += image.nbytes
        while self._images and (len(self._images) > self._max_images or self._bytes > self._max_bytes):
            self._bytes -= self._images.popitem(last=False)[1].nbytes
        return image
