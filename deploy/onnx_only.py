"""Judge images with an exported bundle by ONNX Runtime, NumPy and Pillow alone, without this library.

    python onnx_only.py FOLDER IMAGES...        # FOLDER: written by thesis-ad export BUNDLE -o FOLDER --format onnx

Prints OK or NOK, image score and path of each image.
A bundle that enhances its images needs OpenCV as well (pip install opencv-python-headless). Files of 8 bits are read,
and of 16-bit grey if the bundle was fitted on such; whatever thesis-ad would read in another way is refused."""
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from PIL import Image, ImageOps

def upright(path, white):
    image = Image.open(path)
    if image.mode in ("I", "F") or image.mode in ("RGB", "RGBA", "LA") and ";16" in str(image.tile):
        sys.exit(f"{path} has 16-bit colours, or grey values of 32 bits; use thesis-ad inspect")
    if image.mode.startswith("I;16") and not white:
        sys.exit(f"{path} has 16 bits, and the bundle was fitted on images of 8 bits; use thesis-ad inspect")
    if image.format == "BMP" and image.mode == "RGBA" and not image.getextrema()[3][1]: image = image.convert("RGB")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        if 2 * np.count_nonzero(np.asarray(image) > white) > image.width * image.height:
            sys.exit(f"{path} is brighter than what the bundle takes for white ({white:g}); use thesis-ad inspect")
        grey = np.round(np.asarray(image) * (255 / white))
        image = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")

def enhanced(image):
    import cv2
    cv2.ipp.setUseIPP(False)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    out = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    if (image == image[..., :1]).all(): out = cv2.merge([out[..., 1]] * 3)
    out = cv2.LUT(out, np.rint(255 * (np.arange(256) / 255) ** 0.8).astype(np.uint8))
    return cv2.addWeighted(out, 1.5, cv2.GaussianBlur(out, (0, 0), 1.0), -0.5, 0)

folder, files = Path(sys.argv[1]), sys.argv[2:]
facts, session = json.loads((folder / "bundle.json").read_text()), onnxruntime.InferenceSession(folder / "model.onnx")
(height, width), settings, threshold = facts["input_size"], facts["settings"], facts["threshold"]
if settings["canvas"] or facts["exported"]["ignored"] or settings["page"] != 1:
    sys.exit("this bundle cuts tiles, ignores a region or reads another page than the first; use thesis-ad inspect")
for file in files:
    image = np.asarray(upright(file, facts["facts"].get("white")).resize((width, height), Image.Resampling.BILINEAR))
    if settings["enhance"]: image = enhanced(image)
    score = float(session.run(["score"], {"image": image.transpose(2, 0, 1)[None] / np.float32(255)})[0][0])
    print("-" if threshold is None else "NOK" if score > threshold["value"] else "OK", f"{score:.7g}", file)
