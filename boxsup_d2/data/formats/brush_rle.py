"""Label Studio's run lengths of brush masks: an RGBA picture, row by row, packed into bits; its alpha is the mask.

The packing is that of thi.ng's rle-pack: 32 bits of how many values there are, 5 of how many bits a value has, four
times 4 of how many bits a length may have; then runs of a bit (whether one value is repeated), 2 bits that choose among
the four, the length, and the value or values. Sizes and lengths are stored less one.
"""

from typing import Any

import numpy as np

_SIZES = (3, 4, 8, 16)  # those that Label Studio writes
_WORD = 8
# From this alpha on a pixel is of the mask: edges of a brush are soft.
_INSIDE = 128


def decode_brush(rle: Any, height: int, width: int) -> np.ndarray:
    """The mask of run lengths, H×W bool.

    Args:
        rle: list of bytes, 0..255.
        height, width: of the image.

    Raises:
        ValueError: they are damaged, or of another size.
    """
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(rle))
    except (TypeError, ValueError) as error:
        raise ValueError("its run lengths are no list of bytes") from error
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError("its run lengths end too early")
        return int(bits[place - count : place], 2)

    number, word = read(32), read(5) + 1
    if number != 4 * height * width or word != _WORD:
        raise ValueError(f"its run lengths are of {number // 4} pixels, its image has {height}×{width}")
    sizes = [read(4) + 1 for _ in range(4)]
    alpha = np.zeros(height * width, np.uint8)
    start = 0
    while start < number:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        end = min(start + length, number)
        # Every fourth value, from the third on, is an alpha.
        if repeated:
            alpha[start // 4 : end // 4] = read(_WORD)
        else:
            values = [read(_WORD) for _ in range(length)]
            alpha[start // 4 : end // 4] = values[3 - start % 4 : end - start : 4]
        start = end
    return (alpha >= _INSIDE).reshape(height, width)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask (H×W bool): opaque white where it is, else nothing."""
    flat = mask.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    lengths = 4 * np.diff(starts, append=len(flat))
    pieces = [f"{4 * len(flat):032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "1" * _WORD if flat[start] else "0" * _WORD
        while length > 0:
            run = min(length, 1 << _SIZES[-1])
            choice = next(index for index, size in enumerate(_SIZES) if run <= 1 << size)
            pieces.append(f"1{choice:02b}{run - 1:0{_SIZES[choice]}b}{value}")
            length -= run
    bits = "".join(pieces)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
