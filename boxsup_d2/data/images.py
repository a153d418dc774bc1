"""Fast, strict reading of 8-bit images and of label maps; every mapper reads through this module.

OpenCV decodes a JPEG about 1.6 times as fast as the Pillow route of ``detectron2.data.detection_utils``. Whatever
OpenCV cannot or should not judge (GIF, odd modes, a JPEG that ends too early) goes through Detectron2's reader, so
both accept the same files, but for PNGs whose checksums say that they are damaged. Both turn the image as its EXIF
orientation says.
"""

import errno
import io
import os
import stat
import struct
import zlib
from collections import OrderedDict
from typing import BinaryIO

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, UnidentifiedImageError

_CV2_FLAGS = {"BGR": cv2.IMREAD_COLOR, "RGB": cv2.IMREAD_COLOR, "L": cv2.IMREAD_GRAYSCALE}
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Cameras and archivers append a little behind the end; further back it is looked for in the whole file.
_TAIL_BYTES = 4096
# EXIF's orientations that exchange height and width.
_ORIENTATION_TAG, _TURNED = 0x0112, (5, 6, 7, 8)


def is_image_name(file_name: str) -> bool:
    """Whether a file is an image, by its name; not what archivers of other systems leave behind ("._0001.jpg")."""
    base = os.path.basename(file_name)
    return base.lower().endswith(_EXTENSIONS) and not base.startswith(".")


def read_image(file_name: str, format: str = "BGR") -> np.ndarray:
    """Read an image as uint8, upright.

    Args:
        file_name: path of a local file.
        format: ``"BGR"``, ``"RGB"`` or ``"L"`` (grey), or any format of Detectron2's ``read_image``.

    Returns:
        H×W×3 array, or H×W×1 for ``"L"``; uint8, 0..255, contiguous.

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
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:  # e.g. more pixels than OpenCV accepts: Pillow decides
            image = None
    if image is None:
        return _read_with_detectron2(file_name, format)
    if format == "RGB":
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image[:, :, None] if format == "L" else image


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
        image = detection_utils.read_image(file_name, format=format)
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead to, and an error of their own for
        # images of very many pixels
        raise ValueError(f"Image '{file_name}' is damaged or no image ({error}). Replace or remove it.") from error
    return np.ascontiguousarray(image)


def image_size(file_name: str) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` returns it, from the file's header alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no image, or ends before its data do, as far as that is seen without decoding.
    """
    try:
        with _open(file_name) as file:
            with Image.open(file) as image:
                # Whether Pillow's size of a TIFF is turned already depends on its version; its tags are not.
                tags = getattr(image, "tag_v2", {})
                width, height = tags.get(256, image.width), tags.get(257, image.height)
                turned = _orientation(image) in _TURNED
            if _ends_early(file):
                raise ValueError("the file ends before its image does")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Image '{file_name}' does not exist. Check the folder of the images.") from error
    except Exception as error:  # see _read_with_detectron2
        raise ValueError(f"Image '{file_name}' is damaged or no image ({error}). Replace or remove it.") from error
    return (int(width), int(height)) if turned else (int(height), int(width))


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
        with _open(file_name) as file, Image.open(file) as image:
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
