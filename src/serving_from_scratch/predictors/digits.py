"""Names handwritten digits: 8 × 8 pixels from 0 to 16, as in scikit-learn's data set.

The gateway uses this module for answers of its own, and `litserve_digits` serves the same model.
"""

import functools
import math
from typing import Any

HELD_OUT = 397  # of 1,797 images
PIXELS, BRIGHTEST = 64, 16


def images_and_digits() -> tuple[list[list[float]], list[int]]:
    """Returns all images, each a row of 64 pixels, and their digits; the last 397 are held out."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    return images.tolist(), digits.tolist()


@functools.cache
def model() -> Any:
    """Trains on all images that are not held out; takes a tenth of a second."""
    from sklearn.svm import SVC

    images, digits = images_and_digits()
    return SVC(gamma=0.001).fit(images[:-HELD_OUT], digits[:-HELD_OUT])


def classify(images: list[list[float]]) -> list[int]:
    """Names the digit of each image."""
    return [int(digit) for digit in model().predict(images)]


def problem(image: Any) -> str:
    """Says what is wrong with an image; empty if nothing is."""
    if not isinstance(image, list) or len(image) != PIXELS:
        size = len(image) if isinstance(image, list) else type(image).__name__
        return f"image must be a list of {PIXELS} numbers; it was {size}."
    for place, pixel in enumerate(image):
        number = isinstance(pixel, int | float) and not isinstance(pixel, bool)
        if not (number and math.isfinite(pixel) and 0 <= pixel <= BRIGHTEST):
            return f"image[{place}] must lie from 0 to {BRIGHTEST}; it was {str(pixel)[:20]!r}."
    return ""


def predict(body: dict[str, Any]) -> dict[str, Any]:
    """Answers one request in the gateway's own process."""
    return {"digit": classify([body["image"]])[0]}
