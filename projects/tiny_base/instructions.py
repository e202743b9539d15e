"""Writes instructions about drawn pictures, with their answers.

The wording is ours: easy-VQA, on which the tiny base is later tuned and tested, asks other sentences about other
pictures. Some of its words occur here in other sentences, so that a frozen language model has met them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pictures import COLOR_NAMES, SHAPES, SIDE, Pictures

# A third of the instructions is bare; InstructBLIP was trained with the other two around its questions.
WRAPPERS = ("{}", "question: {} short answer:", "question: {} answer:")
COLOR_OF = (
    "name the color of the {}.",
    "which color has the {}?",
    "tell me the color of the {}.",
    "the {} has which color?",
    "color of the {}:",
)
SHAPE_OF = (
    "name the form of the {} object.",
    "which shape has the {} thing?",
    "tell me the shape of the {} object.",
    "the {} thing has which form?",
    "shape of the {} object:",
)
SHOWS = (
    "can you see a {}?",
    "do you find a {} here?",
    "does the picture show a {}?",
    "yes or no: a {} is visible.",
    "look for a {}. is one visible?",
)
LACKS = (
    "is the picture free of any {}?",
    "is it true that no {} is visible?",
    "is a {} missing from the picture?",
    "does the picture not show a {}?",
    "can you see no {} here?",
)
NOT_COLOR = ("which shape is not {}?", "name the form of the object that is not {}.")
NOT_SHAPE = ("which color has the object that is not a {}?", "name the color of what is not a {}.")
MATCHES = ("yes or no: the {} is {}.", "is it true that the {} is {}?", "does the {} look {}?")
COUNT_ALL = ("how many objects are there?", "count the objects.", "how many shapes does the image contain?")
COUNT_SOME = ("how many {} objects can you see?", "count the {} things.", "how many {} shapes are there?")
WHERE = ("where is the {}?", "where do you find the {}?", "name the place of the {}.")
AT = ("what is at the {}?", "describe the object at the {}.")
CAPTION = ("describe the picture.", "a short image description:", "what do you see?")
PRESENT = ("which colors are present in the picture?", "list the colors.")
NUMBERS = ("zero", "one", "two", "three")
_BEFORE_VOWEL = re.compile(r"\ba(?= [aeiou])")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@dataclass(frozen=True)
class Thing:
    """One object of a picture, in words."""

    color: str
    shape: str
    place: str
    x: float


Asked = tuple[str, str] | None
Scene = list[Thing]


def things_of(pictures: Pictures, index: int) -> Scene:
    """The objects of one picture, from left to right."""
    things = []
    for k in range(int(pictures.count[index])):
        x, y = pictures.center[index, k] * 3 / SIDE
        row, column = _ROWS[min(int(y), 2)], _COLUMNS[min(int(x), 2)]
        color, shape = pictures.color[index, k], pictures.shape[index, k]
        things.append(Thing(COLOR_NAMES[color], SHAPES[shape], f"{row} {column}", float(x)))
    return sorted(things, key=lambda thing: thing.x)


def write_instruction(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """One instruction about a picture and its answer.

    Args:
        rng: Picks the kind and the wording.
        scene: The picture's objects.
    """
    while True:
        # Several kinds need an object that one word singles out; draw again where there is none.
        asked = _KINDS[int(np.searchsorted(_BOUNDS, rng.random(), side="right"))](rng, scene)
        if asked is not None:
            return _articled(_pick(rng, WRAPPERS).format(asked[0])), _articled(asked[1])


def _articled(text: str) -> str:
    return _BEFORE_VOWEL.sub("an", text)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _one(rng: np.random.Generator, scene: Scene) -> Thing:
    return scene[int(rng.integers(len(scene)))]


def _single(scene: Scene, field: str, word: str) -> bool:
    return sum(getattr(thing, field) == word for thing in scene) == 1


def _color(rng: np.random.Generator, scene: Scene) -> Asked:
    thing = _one(rng, scene)
    if len(scene) == 1 and rng.random() < 0.5:
        return _pick(rng, COLOR_OF).format("object"), thing.color
    return (_pick(rng, COLOR_OF).format(thing.shape), thing.color) if _single(scene, "shape", thing.shape) else None


def _shape(rng: np.random.Generator, scene: Scene) -> Asked:
    thing = _one(rng, scene)
    if len(scene) == 1 and rng.random() < 0.5:
        return _pick(rng, SHAPE_OF).format("only"), thing.shape
    return (_pick(rng, SHAPE_OF).format(thing.color), thing.shape) if _single(scene, "color", thing.color) else None


def _sought(rng: np.random.Generator, scene: Scene) -> tuple[str, bool]:
    """Something to look for, and whether it is there; half of the time it is."""
    thing = _one(rng, scene)
    color, shape, kind = thing.color, thing.shape, int(rng.integers(3))
    if rng.random() < 0.5:
        # Near misses: the right colour on another shape, and the other way round.
        if kind == 2 and rng.random() < 0.5:
            color = _pick(rng, COLOR_NAMES)
        elif kind == 0 or kind == 2:
            shape = _pick(rng, SHAPES)
        if kind == 1:
            color = _pick(rng, COLOR_NAMES)
    if kind == 0:
        return shape, any(other.shape == shape for other in scene)
    if kind == 1:
        word = _pick(rng, ("object", "thing", "shape"))
        return f"{color} {word}", any(other.color == color for other in scene)
    return f"{color} {shape}", any((other.color, other.shape) == (color, shape) for other in scene)


def _shows(rng: np.random.Generator, scene: Scene) -> Asked:
    sought, found = _sought(rng, scene)
    return _pick(rng, SHOWS).format(sought), "yes" if found else "no"


def _lacks(rng: np.random.Generator, scene: Scene) -> Asked:
    sought, found = _sought(rng, scene)
    return _pick(rng, LACKS).format(sought), "no" if found else "yes"


def _other(rng: np.random.Generator, scene: Scene) -> Asked:
    if len(scene) != 2:
        return None
    shunned, thing = scene if rng.random() < 0.5 else scene[::-1]
    if rng.random() < 0.5:
        return (_pick(rng, NOT_COLOR).format(shunned.color), thing.shape) if shunned.color != thing.color else None
    return (_pick(rng, NOT_SHAPE).format(shunned.shape), thing.color) if shunned.shape != thing.shape else None


def _matches(rng: np.random.Generator, scene: Scene) -> Asked:
    thing = _one(rng, scene)
    if not _single(scene, "shape", thing.shape):
        return None
    color = thing.color if rng.random() < 0.5 else _pick(rng, COLOR_NAMES)
    return _pick(rng, MATCHES).format(thing.shape, color), "yes" if color == thing.color else "no"


def _count(rng: np.random.Generator, scene: Scene) -> Asked:
    if rng.random() < 0.5:
        return _pick(rng, COUNT_ALL), NUMBERS[len(scene)]
    color = _one(rng, scene).color if rng.random() < 0.7 else _pick(rng, COLOR_NAMES)
    return _pick(rng, COUNT_SOME).format(color), NUMBERS[sum(thing.color == color for thing in scene)]


def _place(rng: np.random.Generator, scene: Scene) -> Asked:
    thing = _one(rng, scene)
    if rng.random() < 0.4:
        single = _single(scene, "place", thing.place)
        return (_pick(rng, AT).format(thing.place), f"a {thing.color} {thing.shape}") if single else None
    return (_pick(rng, WHERE).format(thing.shape), thing.place) if _single(scene, "shape", thing.shape) else None


def _caption(rng: np.random.Generator, scene: Scene) -> Asked:
    if rng.random() < 0.2:
        return _pick(rng, PRESENT), " and ".join(dict.fromkeys(thing.color for thing in scene))
    return _pick(rng, CAPTION), " and ".join(f"a {thing.color} {thing.shape}" for thing in scene)


_WEIGHTS: dict[Callable[[np.random.Generator, Scene], Asked], float] = {
    _color: 0.16,
    _shape: 0.20,
    _shows: 0.20,
    _lacks: 0.14,
    _other: 0.05,
    _matches: 0.06,
    _count: 0.05,
    _place: 0.06,
    _caption: 0.08,
}
_KINDS = tuple(_WEIGHTS)
_BOUNDS = np.cumsum(list(_WEIGHTS.values()))[:-1] / sum(_WEIGHTS.values())
