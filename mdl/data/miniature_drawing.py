"""What the miniature domains are drawn with: a brush, solids, grounds and a camera.

A picture is drawn `ZOOM` times too large, without anti-aliasing, and reduced by `photo`.
Coordinates are picture units: the centre is 0, 0, x grows to the right, y grows downwards, and
the width spans -1..1.
"""

import colorsys
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ZOOM = 3
TEXT_SIZE = 48  # pixels of the font; Brush.text scales it
BOLD = 2  # pixels added around each stroke of the font
STILL: NDArray[np.float64] = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

Colour = tuple[int, int, int]
Pose = NDArray[np.float64]  # (2, 3): an affine map of picture units


def regular(corners: int, start: float = 0.0) -> NDArray[np.float64]:
    """Corners of a regular polygon of radius 1, the first at `start` degrees from the right."""
    angles = np.radians(start) + np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


CIRCLE = regular(24)


def rotation(degrees: float) -> NDArray[np.float64]:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def random_pose(
    rng: Generator,
    *,
    turn: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    shear: float = 0.0,
    stretch: float = 0.0,
) -> Pose:
    """Turn in degrees, shift in picture units, each drawn from -limit..limit; shear and stretch
    stand for what a change of viewpoint does to a flat thing."""
    slant, ratio = rng.uniform(-shear, shear), np.exp(rng.uniform(-stretch, stretch))
    linear = rotation(rng.uniform(-turn, turn)) @ np.array([[ratio, slant], [0.0, 1.0 / ratio]])
    offset = rng.uniform(-shift, shift, (2, 1))
    return np.concatenate([linear * rng.uniform(*scale), offset], axis=1)


def hue(turn: float, saturation: float = 1.0, value: float = 1.0) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(turn % 1.0, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def random_hue(
    rng: Generator,
    turn: tuple[float, float] = (0.0, 1.0),
    saturation: tuple[float, float] = (0.4, 1.0),
    value: tuple[float, float] = (0.4, 1.0),
) -> Colour:
    return hue(rng.uniform(*turn), rng.uniform(*saturation), rng.uniform(*value))


def toned(colour: Colour, tone: float) -> Colour:
    red, green, blue = (min(255, max(0, int(part * tone))) for part in colour)
    return red, green, blue


def grey(value: float) -> Colour:
    return toned((255, 255, 255), value)


@cache
def _stencil(text: str) -> Image.Image:
    font = ImageFont.load_default(size=TEXT_SIZE)
    left, top, right, bottom = map(int, font.getbbox(text, anchor="mm", stroke_width=BOLD))
    stencil = Image.new("L", (right - left + 4, bottom - top + 4))
    corner = (2 - left, 2 - top)
    ImageDraw.Draw(stencil).text(corner, text, 255, font, anchor="mm", stroke_width=BOLD)
    return stencil


class Brush:
    """Draws on a picture, in picture units, through a pose."""

    def __init__(self, picture: Image.Image, pose: Pose = STILL) -> None:
        unit = picture.width / 2
        self._picture, self._draw, self._unit = picture, ImageDraw.Draw(picture), unit
        self._to_pixels = pose * unit
        self._to_pixels[:, 2] += unit, picture.height / 2

    def _pixels(self, points: ArrayLike) -> list[float]:
        placed = np.asarray(points) @ self._to_pixels[:, :2].T + self._to_pixels[:, 2]
        flat: list[float] = placed.ravel().tolist()
        return flat

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=colour)

    def ellipse(self, centre: ArrayLike, radii: ArrayLike, colour: Colour) -> None:
        self.polygon(CIRCLE * np.asarray(radii) + np.asarray(centre), colour)

    def line(self, points: ArrayLike, width: float, colour: Colour) -> None:
        """The width ignores the pose, as that of a pen does."""
        pixels = max(1, round(width * self._unit))
        self._draw.line(self._pixels(points), fill=colour, width=pixels, joint="curve")

    def text(self, text: str, centre: ArrayLike, height: float, colour: Colour) -> None:
        stencil = _stencil(text)
        zoom = height / stencil.height
        corner = np.array([-stencil.width, -stencil.height]) * zoom / 2 + np.asarray(centre)
        linear = self._to_pixels[:, :2] * zoom
        offset = self._to_pixels[:, :2] @ corner + self._to_pixels[:, 2]
        # Pillow asks where each pixel of the result comes from: the inverse map.
        back = np.linalg.inv(linear)
        affine = np.concatenate([back, (-back @ offset)[:, None]], axis=1).ravel().tolist()
        mask = stencil.transform(
            self._picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        self._picture.paste(colour, mask=mask)


def mottle(rng: Generator, side: int, cells: int) -> NDArray[np.float64]:
    """Soft noise about 0, of deviation about 1: (side, side)."""
    small = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)


def canvas(width: int, height: int, colour: Colour) -> Image.Image:
    return Image.new("RGB", (width * ZOOM, height * ZOOM), colour)


def backdrop(
    rng: Generator, width: int, height: int, colour: Colour, spread: float, cells: int = 4
) -> Image.Image:
    """A soft mottle around a colour, as of things far out of focus."""
    tones = np.array(colour) * (1 + rng.normal(0, spread, (cells, cells, 1)))
    tints = tones + rng.normal(0, 80 * spread, (cells, cells, 3))
    small = Image.fromarray(np.clip(tints, 0, 255).astype(np.uint8))
    return small.resize((width * ZOOM, height * ZOOM), Image.Resampling.BICUBIC)


def ball(brush: Brush, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    for step, tone in enumerate((0.55, 0.75, 0.95, 1.1, 1.35)):
        left, up, size = x - 0.1 * step * w, y - 0.1 * step * h, 1 - 0.21 * step
        brush.ellipse((left, up), (w * size, h * size), toned(colour, tone))


def can(brush: Brush, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    rim = 0.25 * w
    brush.ellipse((x, y + h), (w, rim), toned(colour, 0.55))
    for step, tone in enumerate((0.8, 1.1, 1.3, 1.05, 0.8, 0.55)):
        left, right = x + w * (step / 3 - 1), x + w * ((step + 1) / 3 - 1)
        corners = ((left, y - h), (right, y - h), (right, y + h), (left, y + h))
        brush.polygon(corners, toned(colour, tone))
    brush.ellipse((x, y - h), (w, rim), toned(colour, 1.2))


def cone(brush: Brush, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    """Points up; down where h is negative."""
    brush.ellipse((x, y + h), (w, 0.2 * w), toned(colour, 0.55))
    for step, tone in enumerate((0.85, 1.1, 1.3, 1.0, 0.75, 0.55)):
        left, right = x + w * (step / 3 - 1), x + w * ((step + 1) / 3 - 1)
        brush.polygon(((left, y + h), (right, y + h), (x, y - h)), toned(colour, tone))


def box(brush: Brush, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    left, right, top, bottom, deep = x - w, x + w, y - h, y + h, 0.4 * min(w, h)
    lid = ((left, top), (left + deep, top - deep), (right + deep, top - deep), (right, top))
    far = right + deep
    side = ((right, top), (far, top - deep), (far, bottom - deep), (right, bottom))
    brush.polygon(lid, toned(colour, 1.3))
    brush.polygon(side, toned(colour, 0.55))
    brush.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)


def photo(
    picture: Image.Image,
    rng: Generator,
    *,
    light: float = 0.25,
    blur: float = 0.6,
    noise: float = 6.0,
) -> Image.Image:
    """The picture reduced, under an uneven light, out of focus, with the noise of a sensor.

    Light and blur (in pixels) are limits; noise is a deviation, in levels of 255.
    """
    small = picture.reduce(ZOOM)
    if blur:
        small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))
    pixels = np.asarray(small, dtype=np.float32)
    across, down = rng.uniform(-light, light, 2)
    gain = 1 + rng.uniform(-light, light)
    shade = np.linspace(-down, down, small.height)[:, None]
    shade = shade + np.linspace(-across, across, small.width)
    lit = pixels * (gain + shade)[:, :, None] + noise * rng.standard_normal(pixels.shape)
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


Solid = Callable[[Brush, float, float, float, float, Colour], None]
Part = tuple[Solid, float, float, float, float, str]  # x, y, half width, half height, paint

# Kinds of objects, two of each; a part hides those before it.
OBJECTS: dict[str, dict[str, tuple[Part, ...]]] = {
    "vehicle": {
        "car": (
            (ball, -0.42, 0.42, 0.17, 0.17, "dark"), (ball, 0.42, 0.42, 0.17, 0.17, "dark"),
            (box, 0, 0.2, 0.75, 0.18, "main"), (box, -0.05, -0.15, 0.4, 0.17, "glass"),
        ),
        "truck": (
            (ball, -0.42, 0.42, 0.17, 0.17, "dark"), (ball, 0.42, 0.42, 0.17, 0.17, "dark"),
            (box, -0.25, -0.1, 0.5, 0.4, "main"), (box, 0.52, 0.1, 0.2, 0.22, "second"),
        ),
    },
    "tree": {
        "pine": (
            (can, 0, 0.65, 0.09, 0.2, "wood"), (cone, 0, 0.2, 0.55, 0.32, "leaf"),
            (cone, 0, -0.15, 0.43, 0.3, "leaf"), (cone, 0, -0.5, 0.3, 0.3, "leaf"),
        ),
        "oak": (
            (can, 0, 0.5, 0.1, 0.35, "wood"), (ball, -0.25, -0.05, 0.38, 0.35, "leaf"),
            (ball, 0.25, -0.05, 0.38, 0.35, "leaf"), (ball, 0, -0.4, 0.4, 0.35, "leaf"),
        ),
    },
    "building": {
        "house": (
            (box, 0, 0.3, 0.5, 0.35, "main"), (cone, 0, -0.35, 0.68, 0.3, "second"),
            (box, 0, 0.45, 0.1, 0.2, "dark"),
        ),
        "tower": (
            (can, 0, 0.2, 0.25, 0.55, "main"), (cone, 0, -0.6, 0.36, 0.28, "second"),
            (box, 0, 0, 0.06, 0.12, "dark"),
        ),
    },
    "vessel": {
        "mug": (
            (ball, 0.45, 0.1, 0.26, 0.28, "main"), (ball, 0.45, 0.1, 0.13, 0.15, "dark"),
            (can, -0.05, 0.1, 0.42, 0.45, "main"),
        ),
        "bottle": (
            (can, 0, 0.3, 0.28, 0.45, "main"), (cone, 0, -0.35, 0.28, 0.22, "main"),
            (can, 0, -0.5, 0.1, 0.2, "main"), (can, 0, -0.75, 0.12, 0.07, "second"),
        ),
    },
    "light": {
        "lamp": (
            (can, 0, 0.7, 0.32, 0.05, "second"), (can, 0, 0.25, 0.05, 0.4, "second"),
            (cone, 0, -0.3, 0.5, 0.38, "main"),
        ),
        "candle": (
            (can, 0, 0.65, 0.4, 0.06, "second"), (can, 0, 0.15, 0.18, 0.45, "white"),
            (ball, 0, -0.6, 0.1, 0.2, "fire"),
        ),
    },
    "seat": {
        "chair": (
            (box, -0.33, 0.5, 0.06, 0.3, "main"), (box, 0.33, 0.5, 0.06, 0.3, "main"),
            (box, 0, 0.15, 0.42, 0.08, "second"), (box, -0.36, -0.4, 0.07, 0.45, "main"),
        ),
        "stool": (
            (box, -0.33, 0.35, 0.06, 0.4, "main"), (box, 0.33, 0.35, 0.06, 0.4, "main"),
            (box, 0, 0.4, 0.06, 0.4, "main"), (can, 0, -0.1, 0.45, 0.08, "second"),
        ),
    },
    "boat": {
        "sailing boat": (
            (can, 0, -0.1, 0.04, 0.6, "wood"), (cone, 0.2, -0.2, 0.35, 0.45, "white"),
            (ball, 0, 0.5, 0.7, 0.22, "main"),
        ),
        "steamer": (
            (can, 0, -0.35, 0.14, 0.3, "second"), (box, 0, 0.15, 0.45, 0.17, "white"),
            (ball, 0, 0.5, 0.8, 0.22, "main"),
        ),
    },
    "figure": {
        "snowman": (
            (ball, 0, 0.5, 0.42, 0.38, "white"), (ball, 0, -0.05, 0.3, 0.28, "white"),
            (ball, 0, -0.42, 0.21, 0.2, "white"), (can, 0, -0.72, 0.17, 0.12, "dark"),
        ),
        "robot": (
            (box, -0.2, 0.65, 0.1, 0.2, "second"), (box, 0.2, 0.65, 0.1, 0.2, "second"),
            (box, 0, 0.15, 0.38, 0.32, "main"), (box, 0, -0.48, 0.26, 0.2, "main"),
            (ball, -0.1, -0.48, 0.08, 0.08, "fire"), (ball, 0.12, -0.48, 0.08, 0.08, "fire"),
        ),
    },
    "fruit": {
        "apple": (
            (can, 0, -0.45, 0.04, 0.16, "wood"), (ball, 0.17, -0.52, 0.17, 0.08, "leaf"),
            (ball, 0, 0.1, 0.55, 0.5, "fruit"),
        ),
        "pear": (
            (can, 0, -0.6, 0.04, 0.16, "wood"), (ball, 0, -0.15, 0.28, 0.38, "fruit"),
            (ball, 0, 0.32, 0.46, 0.42, "fruit"),
        ),
    },
    "flyer": {
        "rocket": (
            (cone, 0, 0.75, 0.15, -0.2, "fire"), (cone, -0.3, 0.4, 0.15, 0.25, "second"),
            (cone, 0.3, 0.4, 0.15, 0.25, "second"), (can, 0, 0.05, 0.22, 0.45, "main"),
            (cone, 0, -0.65, 0.22, 0.27, "second"),
        ),
        "balloon": (
            (cone, 0, 0.3, 0.35, -0.28, "second"), (ball, 0, -0.25, 0.55, 0.52, "main"),
            (box, 0, 0.7, 0.15, 0.11, "wood"),
        ),
    },
}  # fmt: skip


def random_paints(rng: Generator) -> dict[str, Colour]:
    return {
        "main": random_hue(rng, value=(0.5, 0.9)),
        "second": random_hue(rng, value=(0.5, 0.9)),
        "leaf": random_hue(rng, (0.22, 0.4), (0.5, 0.9), (0.35, 0.7)),
        "fruit": random_hue(rng, (-0.03, 0.3), (0.6, 0.95), (0.6, 0.85)),
        "wood": random_hue(rng, (0.05, 0.1), (0.5, 0.7), (0.35, 0.6)),
        "glass": random_hue(rng, (0.5, 0.6), (0.2, 0.4), (0.7, 0.9)),
        "fire": random_hue(rng, (0.08, 0.16), (0.7, 0.9), (0.85, 1.0)),
        "white": grey(0.8),
        "dark": grey(0.17),
    }
