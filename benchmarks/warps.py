"""Move the pixels of images: blur along a line, zoom, scatter, bend. Images are (N, H, W, channels)."""

import numpy as np
from scipy import ndimage

from guard.types import FloatArray

__all__ = ["bend", "blur_along", "plasma", "scatter", "zoom_in"]


def blur_along(images: FloatArray, *, length: int, sigma: float, angles: FloatArray) -> FloatArray:
    """Average each image with copies of itself moved along a line, weighted by half a Gaussian of the distance.

    Args:
        images: (N, H, W, channels).
        length: Of the longest move, in pixels.
        sigma: Of the Gaussian, in pixels.
        angles: (N,) of the lines, in degrees.
    """
    steps = np.arange(length + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = np.zeros_like(images)
    for i, angle in enumerate(np.deg2rad(angles)):
        for step, weight in zip(steps, weights, strict=True):
            blurred[i] += weight * _moved(images[i], round(step * np.sin(angle)), round(step * np.cos(angle)))
    return blurred


def _moved(image: FloatArray, down: int, right: int) -> FloatArray:
    """Return the image moved by whole pixels; the edge is repeated."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    return image[rows][:, np.clip(np.arange(width) + right, 0, width - 1)]


def zoom_in(images: FloatArray, factor: float) -> FloatArray:
    """Enlarge the middle of square images to their size, by linear interpolation."""
    size = images.shape[1]
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    middle = images[:, first : first + kept, first : first + kept]
    zoomed = ndimage.zoom(middle, (1, factor, factor, 1), order=1)
    first = (zoomed.shape[1] - size) // 2
    found: FloatArray = zoomed[:, first : first + size, first : first + size]
    return found


def scatter(images: FloatArray, *, rounds: int, rng: np.random.Generator) -> FloatArray:
    """Give each inner pixel, round by round, the value of itself or of a neighbour above, to the left, or both."""
    n, height, width = images.shape[:3]
    image = np.arange(n)[:, None, None]
    for _ in range(rounds):
        up, left = rng.integers(0, 2, size=(2, n, height, width))
        up[:, :2], left[:, :, :2] = 0, 0  # the published loop stops short of the first two rows and columns
        images = images[image, np.arange(height)[:, None] - up, np.arange(width) - left]
    return images


def bend(
    images: FloatArray, *, amount: float, sigma: float, corner_shift: float, rng: np.random.Generator
) -> FloatArray:
    """Shear images by three corners that move at random, and bend them along a smooth random field.

    Args:
        images: (N, H, W, channels), square.
        amount: What the field is multiplied with, in pixels; the field is uniform noise in [-1, 1], smoothed.
        sigma: Of the smoothing Gaussian, in pixels.
        corner_shift: The most that a corner moves along an axis, in pixels.
        rng: Draws field and corners.
    """
    n, height, width, channels = images.shape
    bent = np.empty_like(images)
    for i in range(n):
        places: FloatArray = np.moveaxis(np.indices((height, width)), 0, -1).astype(np.float64)
        if amount:
            field = rng.uniform(-1, 1, size=(height, width, 2))
            places += amount * ndimage.gaussian_filter(field, (sigma, sigma, 0), mode="reflect", truncate=3)
        places = _sheared(places, height, corner_shift, rng)
        for c in range(channels):
            bent[i, ..., c] = ndimage.map_coordinates(
                images[i, ..., c], places.T.swapaxes(1, 2), order=1, mode="mirror"
            )
    return bent


def _sheared(places: FloatArray, size: int, corner_shift: float, rng: np.random.Generator) -> FloatArray:
    """Map places by the affine map that brings three moved corners of a middle square back to where they were."""
    centre, half = size // 2, size // 3
    corners = centre + half * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    moved = corners + rng.uniform(-corner_shift, corner_shift, size=corners.shape)
    affine = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    found: FloatArray = places @ affine[:2] + affine[2]
    return found


def plasma(n: int, *, size: int, decay: float, rng: np.random.Generator) -> FloatArray:
    """Draw cloudy fields (N, size, size) in [0, 1] by diamonds and squares; size is a power of two."""
    values, step, amplitude = np.zeros((n, size, size)), size, 1.0
    while step >= 2:
        half, shape = step // 2, (n, size // step, size // step)
        corners = values[:, ::step, ::step]
        square = corners + np.roll(corners, -1, axis=1)
        centres = (square + np.roll(square, -1, axis=2)) / 4 + rng.uniform(-amplitude, amplitude, shape)
        across = (corners + np.roll(corners, -1, axis=2) + centres + np.roll(centres, 1, axis=1)) / 4
        along = (corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=2)) / 4
        values[:, half::step, half::step] = centres
        values[:, ::step, half::step] = across + rng.uniform(-amplitude, amplitude, shape)
        values[:, half::step, ::step] = along + rng.uniform(-amplitude, amplitude, shape)
        step, amplitude = half, amplitude / decay**2
    values -= values.min(axis=(1, 2), keepdims=True)
    found: FloatArray = values / values.max(axis=(1, 2), keepdims=True)
    return found
