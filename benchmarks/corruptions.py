"""Draw the common corruptions: `python benchmarks/corruptions.py` writes `docs/images/corruptions.png`.

The 19 corruptions of ImageNet-C at their 5 severities, of one drawn picture of 224x224 pixels, shown smaller.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from equipoise.corruptions import COLLECTIONS, corrupt

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "corruptions.png"
COLLECTION, SIDE, SHOWN, GAP, LABEL, HEAD, FINE = "imagenet-c", 224, 88, 4, 112, 22, 3


def landscape(side: int) -> Image.Image:
    """Return a picture of a house and a tree between hills."""
    n = side * FINE
    height = np.linspace(0, 1, n)[:, None, None]
    sky = (1 - height) * np.array([70, 130, 200]) + height * np.array([215, 225, 235])
    image = Image.fromarray(np.broadcast_to(sky, (n, n, 3)).astype(np.uint8))
    draw, across = ImageDraw.Draw(image), np.linspace(0, 1, 60)

    def shape(colour: str, *points: tuple[float, float]) -> None:
        draw.polygon([(n * x, n * y) for x, y in points], colour)

    def disk(colour: str, x: float, y: float, radius: float) -> None:
        draw.ellipse([n * (x - radius), n * (y - radius), n * (x + radius), n * (y + radius)], colour)

    disk("#ffe27a", 0.8, 0.18, 0.09)
    for colour, level, swing, phase in (("#6f8f78", 0.55, 0.08, 0.0), ("#4f8a3c", 0.7, 0.05, 2.0)):
        hill = [(x, level + swing * float(np.sin(5 * x + phase))) for x in across]
        shape(colour, (0, 1), *hill, (1, 1))
    shape("#e8dcc0", (0.2, 0.86), (0.2, 0.6), (0.52, 0.6), (0.52, 0.86))
    shape("#b3392f", (0.15, 0.61), (0.36, 0.4), (0.57, 0.61))
    shape("#5a3a22", (0.32, 0.86), (0.32, 0.7), (0.41, 0.7), (0.41, 0.86))
    shape("#3d5f8f", (0.24, 0.74), (0.24, 0.66), (0.29, 0.66), (0.29, 0.74))
    shape("#6b4a2f", (0.76, 0.9), (0.76, 0.62), (0.8, 0.62), (0.8, 0.9))
    for x, y in ((0.7, 0.56), (0.86, 0.56), (0.78, 0.46)):
        disk("#2f6b2f", x, y, 0.11)
    return image.resize((side, side), Image.Resampling.BOX)


def main() -> None:
    """Write the picture: corruptions in lines, in two blocks side by side, severities in columns."""
    clean = landscape(SIDE)
    x = torch.from_numpy(np.asarray(clean).copy()).permute(2, 0, 1)[None].float() / 255
    families = {name: names for name, names in COLLECTIONS.items() if name.startswith(f"{COLLECTION}/")}
    step, lines = SHOWN + GAP, (len(families) + 2) // 2
    width = LABEL + 5 * step
    sheet = Image.new("RGB", (2 * width + 3 * GAP, HEAD + lines * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for block in (0, 1):
        for severity in range(5):
            place = block * (width + 3 * GAP) + LABEL + severity * step + SHOWN // 2
            draw.text((place, HEAD // 2), str(severity + 1), "black", font, anchor="mm")
    for number, (family, names) in enumerate([("clean", ()), *families.items()]):
        left, top = (number // lines) * (width + 3 * GAP), HEAD + (number % lines) * step
        label = family.rpartition("/")[2].replace("_", "\n")
        draw.multiline_text((left + LABEL - 8, top + SHOWN // 2), label, "black", font, anchor="rm", align="right")
        for column, image in enumerate([corrupt(x, name)[0] for name in names] or [x[0]]):
            pixels = (255 * image).round().byte().permute(1, 2, 0).numpy()
            shown = Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.BOX)
            sheet.paste(shown, (left + LABEL + column * step, top))
    sheet.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
