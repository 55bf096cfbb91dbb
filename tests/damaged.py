"""Damaged image files: whatever a decoder makes of them, reading ends in pixels or in one `UserError`.

    python tests/damaged.py 20000

reads that many files, each of `encodings()` damaged in each way of `damage`, and prints how many could still be read.
A test reads a few of them.
"""
import io
import sys

import cv2
import numpy as np
from PIL import Image

from thesis_ad.files import Reading, image_facts, read_image
from thesis_ad.settings import UserError, rng


def _pillow(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def encodings():
    "Encoded images by name, each whole."
    generator = rng("encodings")
    rgb = Image.fromarray(np.clip(np.linspace(40, 200, 40)[None, :, None] + 20 * generator.standard_normal((28, 40, 3)),
        0, 255).astype(np.uint8))
    grey, alpha = rgb.convert("L"), rgb.copy()
    alpha.putalpha(grey)
    deep = np.asarray(grey).astype(np.uint16) * 16
    colours = np.asarray(rgb).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, "a part"
    files = {f"png {mode}": _pillow(image, "PNG")
        for mode, image in (("grey", grey), ("rgb", rgb), ("rgba", alpha), ("palette", rgb.quantize(16)),
            ("bilevel", grey.convert("1")), ("grey alpha", alpha.convert("LA")), ("16 bits", Image.fromarray(deep)))}
    files |= {"png 16-bit rgb": cv2.imencode(".png", colours)[1].tobytes(), "png 16-bit rgba": cv2.imencode(".png",
        np.dstack([colours, deep]))[1].tobytes(), "png exif": _pillow(rgb, "PNG", exif=exif)}
    files |= {"jpeg": _pillow(rgb, "JPEG", exif=exif), "jpeg grey": _pillow(grey, "JPEG"),
        "jpeg progressive": _pillow(rgb, "JPEG", progressive=True), "jpeg cmyk": _pillow(rgb.convert("CMYK"), "JPEG")}
    files |= {"bmp": _pillow(rgb, "BMP"), "bmp grey": _pillow(grey, "BMP"), "bmp 32": _pillow(alpha, "BMP")}
    files |= {f"tiff {name}": _pillow(rgb, "TIFF", compression=name)
        for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")}
    files |= {"tiff 16 bits": _pillow(Image.fromarray(deep), "TIFF"),
        "tiff float": _pillow(Image.fromarray(deep.astype(np.float32) / 4095), "TIFF"),
        "tiff fax": _pillow(grey.convert("1"), "TIFF", compression="group4"),
        "tiff pages": _pillow(grey, "TIFF", save_all=True, append_images=[grey, rgb]),
        "tiff turned": _pillow(rgb, "TIFF", exif=exif), "tiff 16-bit rgb": cv2.imencode(".tif", colours)[1].tobytes()}
    files |= {"webp": _pillow(rgb, "WEBP"), "webp lossless": _pillow(alpha, "WEBP", lossless=True),
        "gif": _pillow(rgb.quantize(16), "GIF"), "ppm": _pillow(rgb, "PPM"), "tga": _pillow(rgb, "TGA"),
        "ico": _pillow(rgb, "ICO")}
    return files


def damage(data, generator):
    """Encoded bytes with one or two faults: cut short, bytes changed, cleared, left out, put in twice,
    or numbers of the header replaced."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 3)):
        n = len(data)
        if n < 2: return bytes(data)
        at, length = int(generator.integers(n)), int(generator.integers(1, 1 + min(64, n)))
        match generator.integers(6):
            case 0: del data[at:]
            case 1:
                for place in generator.integers(n, size=length): data[place] = generator.integers(256)
            case 2: data[at:at + length] = bytes([int(generator.choice([0, 255]))]) * length
            case 3: del data[at:at + length]
            case 4: data[at:at] = data[at:at + length]
            case 5:
                at = int(generator.integers(min(200, n)))
                data[at:at + 4] = generator.choice([0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1,
                    int(generator.integers(2**32))]).item().to_bytes(4, str(generator.choice(["little", "big"])))
    return bytes(data)


def damaged(count):
    "Yield (name, bytes) of `count` damaged files, the encodings in turn."
    files = list(encodings().items())
    for i in range(count):
        name, data = files[i % len(files)]
        yield f"{i}: {name}", damage(data, rng("damage", i))


def read_all(count):
    "(files read, files refused in a sentence) of `count` damaged files; anything else is an AssertionError."
    read, refused, reading = 0, 0, Reading(max_pixels=4_000_000)
    for name, data in damaged(count):
        try:
            pixels, facts = read_image(data, reading), image_facts(data, reading)
            assert pixels.dtype == np.uint8 and pixels.shape == (facts.height, facts.width, 3) and pixels.size, name
            read += 1
        except UserError as error:
            assert len(str(error).splitlines()) == 1, f"{name}: {error}"
            refused += 1
        except Exception as error: raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    return read, refused


if __name__ == "__main__":
    print("{} files read, {} refused".format(*read_all(int(sys.argv[1]))))
