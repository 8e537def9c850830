"""Ten small generated domains, one for each of the Visual Decathlon: the default data.

An image is a pure function of (domain, split, index, seed), so nothing is stored, every process
draws the same pixels, and a run needs neither a download nor a disk. What makes the domains hard
is what makes photographs hard: pose, scale, light, clutter, and classes that differ finely.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray
from PIL import Image

from mdl.data.miniature_drawing import (
    OBJECTS,
    ZOOM,
    Brush,
    Colour,
    Part,
    Solid,
    backdrop,
    ball,
    box,
    can,
    canvas,
    cone,
    grey,
    hue,
    mottle,
    photo,
    random_hue,
    random_paints,
    random_pose,
    regular,
    rotation,
    toned,
)

SIDE = 32
SPLITS = ("train", "val", "test")
WHITE, BLACK = (240, 240, 240), (25, 25, 25)

Draw = Callable[[int, Generator], Image.Image]
Field = NDArray[np.float64]


@dataclass(frozen=True)
class MiniatureDomain:
    """`flip` says whether a horizontal flip keeps the label; `draw` takes a label and an rng."""

    name: str
    stands_for: str  # the domain of the Visual Decathlon
    classes: tuple[str, ...]  # index = label
    images: Mapping[str, int]  # split -> number of images
    flip: bool
    draw: Draw


def miniature_image(
    domain: MiniatureDomain, split: str, index: int, seed: int
) -> tuple[Image.Image, int]:
    """The image and its label. Labels go round, so that each class is in each split."""
    if split not in SPLITS:
        raise ValueError(f"Parameter `split` should be one of {SPLITS}. Found `split = {split!r}`.")
    if not 0 <= index < domain.images[split]:
        raise ValueError(
            f"Parameter `index` should be in 0..{domain.images[split] - 1}, the {split} images of "
            f"{domain.name}. Found `index = {index}`."
        )
    # A checksum rather than hash(): strings hash differently in each process.
    entropy = [seed, zlib.crc32(domain.name.encode()), SPLITS.index(split), index]
    label = index % len(domain.classes)
    return domain.draw(label, Generator(PCG64(entropy))), label


GLYPHS = tuple(consonant + vowel for consonant in "kmnprstv" for vowel in "aeiou")


def _strokes(number: int, num_strokes: int) -> Field:
    """Start, bend and end of each stroke; starts and ends lie on a grid of 3 x 3."""
    program = Generator(PCG64([number]))
    strokes = program.uniform(-0.75, 0.75, (num_strokes, 3, 2))
    strokes[:, ::2] = program.integers(-1, 2, (num_strokes, 2, 2)) * 0.62
    return strokes


def glyph(label: int, rng: Generator) -> Image.Image:
    """A character of an invented syllabary, as a shaky hand writes it: two strokes tell the
    consonant, a third tells the vowel."""
    strokes = np.concatenate([_strokes(label // 5, 2), _strokes(8 + label % 5, 1)])
    strokes += rng.normal(0, 0.08, strokes.shape)
    time = np.linspace(0, 1, 9)[:, None]
    picture = canvas(SIDE, SIDE, WHITE)
    pose = random_pose(rng, turn=18, scale=(0.7, 1.1), shift=0.15, shear=0.25, stretch=0.15)
    brush, width = Brush(picture, pose), rng.uniform(0.09, 0.16)
    for start, bend, end in strokes:
        curve = (1 - time) ** 2 * start + 2 * time * (1 - time) * bend + time**2 * end
        brush.line(curve, width, BLACK)
    return photo(picture, rng, light=0.05, blur=0.4, noise=3).convert("L")


def digit(label: int, rng: Generator) -> Image.Image:
    """A house number: the digit in the middle counts, its neighbours at the edges do not."""
    dull = random_hue(rng, saturation=(0.2, 0.7), value=(0.15, 0.55))
    pale = random_hue(rng, saturation=(0, 0.4), value=(0.7, 1))
    ground, ink = (dull, pale) if rng.random() < 0.75 else (pale, dull)
    picture = backdrop(rng, SIDE, SIDE, ground, spread=0.12)
    pose = random_pose(rng, turn=14, scale=(0.7, 1.15), shift=0.15, shear=0.3, stretch=0.2)
    brush = Brush(picture, pose)
    for side in (-1, 1):
        if rng.random() < 0.7:
            neighbour = str(rng.integers(10))
            brush.text(neighbour, (side * rng.uniform(0.9, 1.1), rng.normal(0, 0.1)), 1.3, ink)
    brush.text(str(label), (0, 0), 1.35, ink)
    return photo(picture, rng, light=0.3, blur=1.6, noise=10)


RED, BLUE, YELLOW = (200, 30, 40), (30, 80, 190), (240, 190, 40)
ROUND, OCTAGON, UP, DOWN, DIAMOND = (
    regular(24), regular(8, 22.5), regular(3, -90), regular(3, 90), regular(4)
)  # fmt: skip
ARROW = np.array(
    [[0.1, 0.6], [0.1, -0.1], [0.35, -0.1], [0, -0.6], [-0.35, -0.1], [-0.1, -0.1], [-0.1, 0.6]]
)
BAR = np.array([[-0.6, -0.17], [0.6, -0.17], [0.6, 0.17], [-0.6, 0.17]])


class Sign(NamedTuple):
    outline: Field
    rim: Colour
    face: Colour
    ink: Colour
    symbol: str | tuple[Field, ...]  # a text or polygons
    height: float = 0.65  # of a text


SIGNS = {
    "stop": Sign(OCTAGON, WHITE, RED, WHITE, "STOP", 0.4),
    "yield": Sign(DOWN, RED, WHITE, WHITE, ()),
    "priority road": Sign(DIAMOND, WHITE, YELLOW, YELLOW, ()),
    "no entry": Sign(ROUND, RED, RED, WHITE, (BAR,)),
    "speed limit 30": Sign(ROUND, RED, WHITE, BLACK, "30"),
    "speed limit 50": Sign(ROUND, RED, WHITE, BLACK, "50"),
    "speed limit 80": Sign(ROUND, RED, WHITE, BLACK, "80"),
    "straight ahead": Sign(ROUND, WHITE, BLUE, WHITE, (ARROW,)),
    "turn left": Sign(ROUND, WHITE, BLUE, WHITE, (ARROW @ rotation(-90).T,)),
    "turn right": Sign(ROUND, WHITE, BLUE, WHITE, (ARROW @ rotation(90).T,)),
    "danger": Sign(UP, RED, WHITE, BLACK, "!", 0.75),
    "crossroads": Sign(
        UP, RED, WHITE, BLACK, tuple(BAR * 0.6 @ rotation(turn).T for turn in (45, -45))
    ),
}


def sign(label: int, rng: Generator) -> Image.Image:
    outline, rim, face, ink, symbol, height = tuple(SIGNS.values())[label]
    picture = backdrop(rng, SIDE, SIDE, random_hue(rng, saturation=(0.1, 0.5)), spread=0.35)
    pose = random_pose(rng, turn=12, scale=(0.45, 0.9), shift=0.2, shear=0.25, stretch=0.2)
    brush = Brush(picture, pose)
    brush.polygon(outline, rim)
    brush.polygon(outline * 0.74, face)
    if isinstance(symbol, str):
        brush.text(symbol, (0, 0), height, ink)
    else:
        for part in symbol:
            brush.polygon(part, ink)
    return photo(picture, rng, light=0.4, blur=1.4, noise=12)


def _woven(u: Field, v: Field) -> Field:
    over = np.sin(u / 2) * np.sin(v / 2) > 0
    return np.where(over, np.sin(2 * u), np.sin(2 * v))


# Waves over u, v; the sign of a value picks one of two colours.
TEXTURES: dict[str, Callable[[Field, Field], Field]] = {
    "banded": lambda u, v: np.sin(u),
    "chequered": lambda u, v: np.sin(u / 1.4) * np.sin(v / 1.4),
    "dotted": lambda u, v: np.cos(u) + np.cos(v) - 0.7,
    "grid": lambda u, v: np.maximum(np.cos(u), np.cos(v)) - 0.75,
    "honeycombed": lambda u, v: np.cos(u) + 2 * np.cos(u / 2) * np.cos(0.866 * v) + 0.5,
    "marbled": lambda u, v: np.sin(u / 2 + 3 * np.sin(v / 3.1) + 2 * np.sin(u / 2.3 + v / 1.7)),
    "woven": _woven,
    "zigzagged": lambda u, v: np.sin(v + 2.4 * np.arcsin(np.sin(u / 1.5)) / 1.57),
}


def texture(label: int, rng: Generator) -> Image.Image:
    pose = random_pose(rng, turn=60, scale=(10, 20), shift=9, shear=0.2, stretch=0.15)
    grid = np.linspace(-1, 1, SIDE)
    warp = rng.uniform(0.1, 0.4)
    x, y = np.meshgrid(grid, grid)
    u, v = (row[0] * x + row[1] * y + row[2] + warp * mottle(rng, SIDE, 5) for row in pose)
    wave = tuple(TEXTURES.values())[label](u, v) + 0.15 * mottle(rng, SIDE, 4)
    mix = 0.5 + 0.5 * np.tanh(rng.uniform(2, 5) * wave)
    dark = np.array(random_hue(rng, saturation=(0.1, 0.8), value=(0.15, 0.5)))
    light = np.array(random_hue(rng, saturation=(0.1, 0.6), value=(0.65, 1)))
    if rng.random() < 0.25:
        dark, light = light, dark
    pixels = dark + mix[:, :, None] * (light - dark)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return photo(picture.resize((SIDE * ZOOM, SIDE * ZOOM)), rng, light=0.3, blur=0.7, noise=8)


def _street(rng: Generator, height: int) -> Image.Image:
    """What stands about: walls, posts, signs on posts, bushes."""
    picture = backdrop(rng, 24, height, grey(rng.uniform(0.25, 0.7)), spread=0.3)
    brush = Brush(picture, random_pose(rng, turn=5))
    for _ in range(rng.integers(2, 6)):
        x, y, tone = rng.uniform(-1, 1), rng.uniform(-1.6, 1.6), grey(rng.uniform(0.05, 0.9))
        w, h = rng.uniform(0.06, 0.35), rng.uniform(0.3, 1.6)
        brush.polygon(((x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)), tone)
        if rng.random() < 0.5:
            crown = toned(tone, rng.uniform(0.7, 1.3))
            brush.ellipse((x, y - h), rng.uniform(0.15, 0.45, 2), crown)
    return picture


def pedestrian(label: int, rng: Generator) -> Image.Image:
    picture = _street(rng, 48)
    if label == 1:
        pose = random_pose(rng, turn=4, scale=(0.7, 1.0), shift=0.15, stretch=0.1)
        brush = Brush(picture, pose)
        coat, trousers = (grey(rng.uniform(0.05, 0.85)) for _ in range(2))
        skin, stride, swing = grey(rng.uniform(0.4, 0.9)), rng.uniform(0, 0.4), rng.uniform(0, 0.4)
        for side in (-1, 1):
            knee, foot = (side * (0.12 + stride / 2), 0.85), (side * (0.12 + stride), 1.5)
            brush.line(((side * 0.12, 0.2), knee, foot), 0.2, trousers)
            brush.line(((side * 0.3, -0.7), (side * (0.35 + swing), 0.1)), 0.13, coat)
        brush.ellipse((0, -0.35), (0.36, 0.65), coat)
        brush.ellipse((rng.normal(0, 0.04), -1.2), (0.19, 0.24), skin)
    return photo(picture, rng, light=0.35, blur=1.2, noise=14).convert("L")


class Bloom(NamedTuple):
    petals: int
    width: float  # of a petal of length 1
    point: float  # 0: round, 1: pointed
    hue: float
    saturation: float
    heart: Colour


GOLD, BROWN, LIME = (235, 180, 40), (80, 45, 20), (190, 210, 90)
FLOWERS = {
    "daisy": Bloom(13, 0.13, 0.2, 0.15, 0.05, GOLD),
    "sunflower": Bloom(16, 0.14, 1.0, 0.13, 0.9, BROWN),
    "buttercup": Bloom(5, 0.42, 0.0, 0.15, 0.85, GOLD),
    "black-eyed susan": Bloom(9, 0.2, 0.3, 0.12, 0.95, BROWN),
    "poppy": Bloom(4, 0.6, 0.0, 0.01, 0.9, BLACK),
    "wild rose": Bloom(5, 0.45, 0.0, 0.93, 0.45, GOLD),
    "cosmos": Bloom(8, 0.27, 0.3, 0.9, 0.6, GOLD),
    "aster": Bloom(16, 0.1, 0.6, 0.75, 0.55, GOLD),
    "periwinkle": Bloom(5, 0.35, 0.4, 0.67, 0.6, WHITE),
    "clematis": Bloom(6, 0.32, 1.0, 0.78, 0.7, LIME),
    "tiger lily": Bloom(6, 0.24, 1.0, 0.06, 0.9, BROWN),
    "trillium": Bloom(3, 0.42, 0.9, 0.2, 0.06, LIME),
}


def _petal(width: float, point: float) -> Field:
    """Outline of a petal from 0, 0 to 0, -1."""
    along = np.linspace(0, 1, 8)
    half = width * np.sin(np.pi * along ** (1.3 - 0.5 * point)) ** (0.6 + 0.6 * point)
    up = np.stack([half, -along], axis=1)
    return np.concatenate([up, (up * (-1, 1))[::-1]])


def flower(label: int, rng: Generator) -> Image.Image:
    bloom = tuple(FLOWERS.values())[label]
    picture = backdrop(rng, SIDE, SIDE, random_hue(rng, (0.2, 0.42), value=(0.2, 0.6)), spread=0.3)
    for _ in range(4):  # leaves
        leaf = Brush(picture, random_pose(rng, turn=180, scale=(0.6, 1.2), shift=0.9))
        leaf.polygon(_petal(0.25, 0.8), random_hue(rng, (0.22, 0.4), value=(0.25, 0.65)))
    pose = random_pose(rng, turn=40, scale=(0.5, 0.95), shift=0.25, shear=0.3, stretch=0.3)
    brush = Brush(picture, pose)
    turn, tint = rng.normal(bloom.hue, 0.035), bloom.saturation * rng.uniform(0.75, 1.05)
    value = rng.uniform(0.8, 1.0)
    petal = _petal(bloom.width * rng.uniform(0.85, 1.15), bloom.point)
    for order in range(bloom.petals):
        size, droop = rng.uniform(0.85, 1.0), rng.normal(0, 4)
        placed = petal * size @ rotation(order * 360 / bloom.petals + droop).T
        brush.polygon(placed, hue(turn, min(tint, 1), value * rng.uniform(0.72, 1)))
        brush.line(placed[1:7:5] * 0.8, 0.03, hue(turn, min(tint * 1.3, 1), value * 0.7))
    brush.ellipse((0, 0), (0.26, 0.26), toned(bloom.heart, 0.7))
    brush.ellipse((-0.03, -0.03), (0.2, 0.2), bloom.heart)
    return photo(picture, rng, light=0.25, blur=0.7, noise=6)


class Wing(NamedTuple):
    span: float  # of one side
    sweep: float  # how far the tip lies behind the root
    root: float  # chord
    tip: float  # chord


class Airframe(NamedTuple):
    wing: Wing
    engines: int  # on each wing
    tail_engines: int
    tail: float  # span, 0 for none
    canard: float  # span, 0 for none
    propeller: bool


PLANES = {
    "glider": Airframe(Wing(1.0, 0.0, 0.17, 0.08), 0, 0, 0.3, 0, False),
    "single-propeller straight-wing": Airframe(Wing(0.8, 0.0, 0.3, 0.24), 0, 0, 0.32, 0, True),
    "twin-propeller straight-wing": Airframe(Wing(0.9, 0.05, 0.28, 0.16), 1, 0, 0.36, 0, True),
    "twin-jet airliner": Airframe(Wing(0.85, 0.4, 0.36, 0.1), 1, 0, 0.34, 0, False),
    "four-jet airliner": Airframe(Wing(0.9, 0.42, 0.38, 0.1), 2, 0, 0.34, 0, False),
    "tail-engine jet": Airframe(Wing(0.8, 0.3, 0.32, 0.1), 0, 2, 0.3, 0, False),
    "three-jet airliner": Airframe(Wing(0.85, 0.4, 0.36, 0.1), 1, 1, 0.34, 0, False),
    "swept-wing fighter": Airframe(Wing(0.55, 0.5, 0.5, 0.12), 0, 2, 0.36, 0, False),
    "delta-wing fighter": Airframe(Wing(0.58, 0.8, 0.95, 0.08), 0, 1, 0, 0, False),
    "canard delta-wing fighter": Airframe(Wing(0.58, 0.75, 0.85, 0.1), 0, 1, 0, 0.3, False),
}


def _draw_wing(brush: Brush, y: float, wing: Wing, colour: Colour) -> None:
    tip = y + wing.sweep
    edge = [(0, y), (wing.span, tip), (wing.span, tip + wing.tip), (0, y + wing.root)]
    for side in (-1, 1):
        brush.polygon(np.array(edge) * (side, 1), colour)


def plane(label: int, rng: Generator) -> Image.Image:
    """Seen from above, over sky or land, as the finest differences show from there."""
    frame = tuple(PLANES.values())[label]
    land = random_hue(rng, (0.25, 0.65), (0.3, 0.7), (0.25, 0.55))
    picture = backdrop(rng, SIDE, SIDE, land, spread=0.15)
    for _ in range(3):
        cloud = rng.uniform(-1, 1, 2)
        Brush(picture).ellipse(cloud, rng.uniform(0.1, 0.5, 2), toned(land, rng.uniform(0.8, 1.4)))
    pose = random_pose(rng, turn=35, scale=(0.65, 1.0), shift=0.18, shear=0.2, stretch=0.2)
    brush = Brush(picture, pose)
    skin = random_hue(rng, saturation=(0, 0.3), value=(0.7, 0.9))
    dark, light = toned(skin, 0.25), toned(skin, 1.15)
    root = -0.1 - 0.35 * frame.wing.sweep + rng.normal(0, 0.03)
    for engine in range(frame.engines):
        x = 0.32 + 0.27 * engine
        y = root + frame.wing.sweep * x / frame.wing.span - 0.06  # ahead of the wing
        for side in (-1, 1):
            brush.ellipse((side * x, y), (0.075, 0.19), dark)
            if frame.propeller:
                brush.line(((side * x - 0.13, y - 0.17), (side * x + 0.13, y - 0.17)), 0.05, dark)
    _draw_wing(brush, root, frame.wing, skin)
    _draw_wing(brush, 0.62, Wing(frame.tail, 0.4 * frame.wing.sweep, 0.2, 0.1), skin)
    _draw_wing(brush, -0.55, Wing(frame.canard, 0.15, 0.16, 0.06), skin)
    brush.ellipse((0, 0), (0.11, 0.9), light)
    for engine in range(frame.tail_engines):
        brush.ellipse((0.17 * (2 * engine - frame.tail_engines + 1), 0.6), (0.075, 0.19), dark)
    if frame.propeller and not frame.engines:
        brush.line(((-0.2, -0.88), (0.2, -0.88)), 0.06, dark)
    return photo(picture, rng, light=0.25, blur=0.9, noise=9)


# Where the moving thing is at time t in 0..1: x, y and its size.
MOTIONS: dict[str, Callable[[Field], tuple[Field, Field, Field | float]]] = {
    "falling": lambda t: (0.2 * t, 1.5 * t**2 - 0.8, 1.0),
    "rising": lambda t: (0.2 * t, 0.8 - 1.5 * t, 1.0),
    "crossing": lambda t: (1.6 * t - 0.8, 0 * t, 1.0),
    "bouncing": lambda t: (1.5 * t - 0.75, 0.6 - 1.1 * np.abs(np.cos(3 * np.pi * t)), 1.0),
    "zigzagging": lambda t: (0.9 * np.arcsin(np.sin(9.5 * t)) / 1.57, 1.5 * t - 0.75, 1.0),
    "swinging": lambda t: (0.8 * np.cos(6 * t), 0.45 - 0.9 * np.cos(6 * t) ** 2, 1.0),
    "circling": lambda t: (0.6 * np.cos(6 * t), 0.6 * np.sin(6 * t), 1.0),
    "spiralling": lambda t: (0.8 * t * np.cos(11 * t), 0.8 * t * np.sin(11 * t), 1.0),
    "approaching": lambda t: (0.3 * t, 0.2 * t, 0.5 + 2 * t),
    "receding": lambda t: (0.3 * t, 0.2 * t, 2.5 - 2 * t),
}


def _frames(places: Field, size: Field, radii: Field) -> Field:
    """A soft spot on black at each of the places, (time, 2) -> (time, SIDE, SIDE)."""
    grid = np.linspace(-1, 1, SIDE)
    across = (grid[None, None, :] - places[:, 0, None, None]) / radii[0]
    down = (grid[None, :, None] - places[:, 1, None, None]) / radii[1]
    reach = np.hypot(across, down) / size[:, None, None]
    frames: Field = 1 / (1 + np.exp(np.clip(8 * (reach - 1), -30, 30)))
    return frames


def motion(label: int, rng: Generator) -> Image.Image:
    """A dynamic image: frames weighted by when they are, so that the trail runs dark to bright.
    Something small passes by as well."""
    time = np.linspace(0, 1, 16)
    x, y, size = tuple(MOTIONS.values())[label](time * rng.uniform(0.75, 1.0))
    pose = random_pose(rng, turn=35, scale=(0.6, 1.0), shift=0.3, shear=0.25, stretch=0.25)
    places = np.stack([x * rng.choice((-1, 1)), y], axis=1) @ pose[:, :2].T + pose[:, 2]
    start, end = rng.uniform(-1, 1, (2, 2))
    passing = start + time[:, None] * (end - start)
    colour, other = rng.uniform(65, 125, 3), rng.uniform(25, 85, 3)
    pixels = 125 + rng.normal(0, 9, (SIDE, SIDE, 3)) + 14 * mottle(rng, SIDE, 8)[:, :, None]
    for path, sizes, reach, tint in (
        (passing, np.ones_like(time), rng.uniform(0.08, 0.18, 2), other),
        (places, size * np.ones_like(time), rng.uniform(0.11, 0.2, 2), colour),
    ):
        trail = np.tensordot(time - 0.45, _frames(path, sizes, reach), axes=1)
        pixels += trail[:, :, None] / abs(trail).max() * tint
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


FINE = {name: parts for kind in OBJECTS.values() for name, parts in kind.items()}


def _scene(parts: tuple[Part, ...], rng: Generator, stretch: float) -> Image.Image:
    """An object before a wall, on a floor, among a few things of no account."""
    picture = backdrop(rng, SIDE, SIDE, random_hue(rng, saturation=(0.1, 0.5)), spread=0.2)
    floor = random_hue(rng, saturation=(0.1, 0.5))
    horizon = rng.uniform(0.2, 0.7)
    brush = Brush(picture)
    brush.polygon(((-1, horizon), (1, horizon), (1, 1), (-1, 1)), floor)
    solids: tuple[Solid, ...] = (ball, can, cone, box)
    for _ in range(rng.integers(1, 4)):
        solid = solids[rng.integers(4)]
        x, y = rng.choice((-1, 1)) * rng.uniform(0.5, 1), rng.uniform(-0.7, 0.9)
        width, height = rng.uniform(0.1, 0.3, 2)
        solid(brush, x, y, width, height, random_hue(rng))
    pose = random_pose(rng, turn=16, scale=(0.6, 1.0), shift=0.2, shear=0.15, stretch=stretch)
    if rng.random() < 0.5:
        pose[:, 0] *= -1
    brush, paints = Brush(picture, pose), random_paints(rng)
    for solid, x, y, width, height, paint in parts:
        solid(brush, x, y, width, height, paints[paint])
    return photo(picture, rng, light=0.3, blur=0.8, noise=8)


def fine_object(label: int, rng: Generator) -> Image.Image:
    return _scene(tuple(FINE.values())[label], rng, stretch=0.12)


def coarse_object(label: int, rng: Generator) -> Image.Image:
    """Either of a kind, and its taller and wider siblings."""
    kind = tuple(tuple(OBJECTS.values())[label].values())
    return _scene(kind[rng.integers(len(kind))], rng, stretch=0.25)


def _images(train: int, held_out: int) -> dict[str, int]:
    return {"train": train, "val": held_out, "test": held_out}


DOMAINS = (
    MiniatureDomain("glyphs", "omniglot", GLYPHS, _images(800, 280), False, glyph),
    MiniatureDomain("digits", "svhn", tuple("0123456789"), _images(1100, 300), False, digit),
    MiniatureDomain("signs", "gtsrb", tuple(SIGNS), _images(900, 240), False, sign),
    MiniatureDomain("textures", "dtd", tuple(TEXTURES), _images(240, 200), True, texture),
    MiniatureDomain(
        "pedestrians",
        "daimlerpedcls",
        ("background", "pedestrian"),
        _images(800, 300),
        True,
        pedestrian,
    ),
    MiniatureDomain("flowers", "vgg-flowers", tuple(FLOWERS), _images(120, 240), True, flower),
    MiniatureDomain("planes", "aircraft", tuple(PLANES), _images(300, 200), True, plane),
    MiniatureDomain("motion", "ucf101", tuple(MOTIONS), _images(400, 200), True, motion),
    MiniatureDomain("objects", "imagenet12", tuple(FINE), _images(2400, 300), True, fine_object),
    MiniatureDomain(
        "objects_coarse", "cifar100", tuple(OBJECTS), _images(1000, 300), True, coarse_object
    ),
)
