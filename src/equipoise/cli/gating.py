"""What `evaluate` writes beside its record for others: files for continuous integration, and images as PNG."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from equipoise.cli.console import say
from equipoise.cli.recorded import require_file
from equipoise.cli.requests import Evaluate
from equipoise.core.errors import require
from equipoise.core.files import require_writable, write_atomically, write_once
from equipoise.evaluation import WORST, read_points
from equipoise.evaluation.journal import images_of
from equipoise.geometry import Box
from equipoise.report import continuous_integration
from equipoise.results.records import Evaluation


def check(options: Evaluate, shape: tuple[int, ...]) -> None:
    """Raise `EquipoiseError`, before anything is evaluated, for options that cannot be fulfilled."""
    limit = options.fail_under
    require(limit is None or 0 <= limit <= 1, f"--fail-under {limit}: expected an accuracy in [0, 1], such as 0.55.")
    asked = [name for name in ("fail_under", "junit", "sarif") if getattr(options, name) is not None]
    for name in asked:
        flag = f"--{name.replace('_', '-')}"
        require(options.attacks != ("clean",), f"{flag} is about robust accuracy: give --attacks, such as pgd.")
        require(options.shard == "1/1", f"{flag} is of a whole evaluation, not of a shard: leave it out.")
    for flag, file in (("--junit", options.junit), ("--sarif", options.sarif)):
        if file is not None:
            require_file(file, option=flag)
            require_writable(file.parent, flag)
    folder = options.save_images
    if folder is None:
        return
    require(options.images, "--save-images needs the images that --no-images leaves out.")
    require(len(shape) == 3 and shape[0] in (1, 3), f"--save-images: inputs of shape {shape} are not images.")
    used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    require(options.overwrite or not used, f"--save-images {folder} is not an empty folder: choose another.")
    require_writable(folder, "--save-images")


def conclude(options: Evaluate, evaluation: Evaluation, out: Path, box: Box = Box()) -> int:
    """Write the files that were asked for, and return the exit code: 1 if --fail-under is not met."""
    if options.junit is not None:
        content = continuous_integration.junit(evaluation, options.fail_under)
        say(f"wrote {write_once(options.junit, content, True)}")
    if options.sarif is not None:
        log = continuous_integration.sarif(evaluation, out, options.fail_under)
        say(f"wrote {write_once(options.sarif, (json.dumps(log, indent=1) + chr(10)).encode(), True)}")
    if options.save_images is not None:
        count = _save_images(options.save_images, evaluation, out, box)
        say(f"wrote {count} images into {options.save_images}; as 8-bit files some may not fool the model any more")
    if options.fail_under is None:
        return 0
    worst = continuous_integration.weakest(evaluation)
    failed = continuous_integration.fails(worst, options.fail_under)
    say(f"{'failed' if failed else 'passed'}: {continuous_integration.sentence(worst, options.fail_under)}")
    return int(failed)


def _save_images(folder: Path, evaluation: Evaluation, out: Path, box: Box) -> int:
    """Write each adversarial image as ATTACK-NORM-EPS/SAMPLE-CLASS-as-CLASS.png, with the true and the predicted class,
    the box being black to white; return how many there are.
    """
    clean, *others = evaluation.results
    attacks, count = [result for result in others if result.attack != WORST], 0
    for result, stored in zip(attacks, read_points(images_of(out)), strict=True):
        name = f"{result.attack}-{result.norm}-{result.eps:.6g}"
        place = folder / "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        for row, image in zip(stored["rows"].tolist(), stored["x"], strict=True):
            pixels = (
                (255 * ((image - box.low) / (box.high - box.low)).clip(0, 1))
                .round()
                .astype(np.uint8)
                .transpose(1, 2, 0)
            )
            content = io.BytesIO()
            Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(content, format="PNG")
            file = f"{row:05}-{clean.prediction[row]}-as-{result.prediction[row]}.png"
            write_atomically(place / file, content.getvalue(), durable=False)
            count += 1
    return count
