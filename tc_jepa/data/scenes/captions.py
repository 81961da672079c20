"""True sentences about a scene.

There are three kinds: an object with its attributes and position, a relation between two objects, the whole scene.
Templates and synonyms are drawn at random. "the" names the only object of its colour and shape, "a" one of several.
"""

from collections import Counter
from collections.abc import Sequence
import random

from tc_jepa.data.scenes.scene import NUMBERS, Scene, SceneObject

SYNONYMS = {  # by the word itself, which may be there twice, to be drawn more often
    line.split()[0]: tuple(line.split())
    for line in ("small little", "large big", "plain solid", "striped stripy", "circle circle disc", "crescent moon")
    + ("cross cross plus", "purple purple violet", "cyan cyan turquoise", "checked chequered", "dotted spotted")
    + ("gradient shaded", "speckled grainy", "cloudy blotchy")
}
THINGS = (("object", "objects"), ("shape", "shapes"), ("figure", "figures"))
EDGE = 0.12  # of the image: an object closer than this to the middle is neither left nor right, neither top nor bottom
PLACES = {  # (column, row), each -1, 0 or 1
    (-1, -1): ("near the top left", "in the upper left", "at the top left"),
    (0, -1): ("near the top", "at the top", "in the upper part"),
    (1, -1): ("near the top right", "in the upper right", "at the top right"),
    (-1, 0): ("on the left", "at the left", "on the left side"),
    (0, 0): ("in the middle", "near the centre", "in the centre"),
    (1, 0): ("on the right", "at the right", "on the right side"),
    (-1, 1): ("near the bottom left", "in the lower left", "at the bottom left"),
    (0, 1): ("near the bottom", "at the bottom", "in the lower part"),
    (1, 1): ("near the bottom right", "in the lower right", "at the bottom right"),
}

OBJECT_TEMPLATES = (  # no two can produce the same sentence
    "a {size} {texture} {colour} {shape} {place}",
    "there is a {size} {colour} {shape} {place}",
    "{place} there is a {colour} {shape}",
    "{place} we see a {texture} {colour} {shape}",
    "a {colour} {shape} {place}",
    "the picture shows a {size} {texture} {shape} {place}",
    "{place} is a {shape} that is {size} and {colour}",
    "a {shape} {place} is {colour} and {texture}",
    "a {size} {colour} thing {place} is a {shape}",
    "something {colour} and {texture} {place}",
)
RELATION_TEMPLATES = {
    "left": (
        "{a} is left of {b}",
        "{a} is to the left of {b}",
        "{b} is right of {a}",
        "{b} is to the right of {a}",
        "{a} has {b} on its right",
    ),
    "above": ("{a} is above {b}", "{b} is below {a}", "{a} is higher than {b}", "{b} is lower than {a}"),
    "front": (
        "{a} is in front of {b}",
        "{a} overlaps {b}",
        "{a} partly covers {b}",
        "{b} is behind {a}",
        "{b} is partly hidden by {a}",
    ),
    "larger": ("{a} is larger than {b}", "{a} is bigger than {b}", "{b} is smaller than {a}"),
}
CLEARLY_APART = 0.15  # of the image: the least distance of two centres for "left of" and "above"
OBJECT_SENTENCES = 8  # divided among the objects, rounded up: at least 8 in a scene
SCENE_SENTENCES = 4
MOST_RELATIONS = 10  # the pairs of five objects; those of more objects would outnumber the sentences about objects
MOST_LISTED = 5  # objects that a sentence lists: more would not fit into the length that captions are cut to


def captions(scene: Scene, rng: random.Random, complete: bool = True) -> tuple[str, ...]:
    """Different sentences: between 12 and 24 for one to five objects, up to 28 for eight.

    Where the scene is not `complete`, because parts of other objects are visible, no sentence counts or lists objects.
    """
    sentences = _object_sentences(scene, rng) + _relation_sentences(scene, rng)
    if complete and scene.objects:
        sentences += _scene_sentences(scene, rng)
    else:
        sentences += [f"the background is {_word(scene.background.pattern, rng)}"]
    return tuple(dict.fromkeys(sentences))


def _object_sentences(scene: Scene, rng: random.Random) -> list[str]:
    each = -(-OBJECT_SENTENCES // max(len(scene.objects), 1))
    templates = rng.sample(OBJECT_TEMPLATES, len(OBJECT_TEMPLATES))
    return [
        _article(templates[(i * each + j) % len(templates)].format_map(_wording(item, rng)))
        for i, item in enumerate(scene.objects)
        for j in range(each)
    ]


def _relation_sentences(scene: Scene, rng: random.Random) -> list[str]:
    """One sentence for each two objects in some relation, unless they have the same colour and shape."""
    named = Counter((item.colour, item.shape) for item in scene.objects)
    sentences = []
    for j, b in enumerate(scene.objects):
        for i, a in enumerate(scene.objects[:j]):
            held = relations(a, b, covered=(j, i) in scene.covers)
            if held and (a.colour, a.shape) != (b.colour, b.shape):
                relation, first, second = rng.choice(held)
                template = rng.choice(RELATION_TEMPLATES[relation])
                sentences.append(_article(template.format(a=_name(first, named, rng), b=_name(second, named, rng))))
    return sentences if len(sentences) <= MOST_RELATIONS else rng.sample(sentences, MOST_RELATIONS)


def relations(a: SceneObject, b: SceneObject, covered: bool) -> list[tuple[str, SceneObject, SceneObject]]:
    """The relations that clearly hold: (key of RELATION_TEMPLATES, its {a}, its {b}). `covered`: b hides part of a."""
    held = []
    right, down = b.x - a.x, b.y - a.y
    if abs(right) >= CLEARLY_APART and abs(right) > abs(down):
        held.append(("left", *((a, b) if right > 0 else (b, a))))
    if abs(down) >= CLEARLY_APART and abs(down) > abs(right):
        held.append(("above", *((a, b) if down > 0 else (b, a))))
    if covered:
        held.append(("front", b, a))
    if a.size != b.size:
        held.append(("larger", *((a, b) if a.size == "large" else (b, a))))
    return held


def _scene_sentences(scene: Scene, rng: random.Random) -> list[str]:
    objects = scene.objects
    background, number = _word(scene.background.pattern, rng), NUMBERS[len(objects)]
    things = rng.choice(THINGS)[len(objects) > 1]
    verb = "is" if len(objects) == 1 else "are"
    colours = _listed([_word(colour, rng) for colour in dict.fromkeys(item.colour for item in objects)])
    sentences = [
        f"{number} {things} on a {background} background",
        f"a {background} background with {number} {things}",
        f"there {verb} {number} {things} in the picture",
        f"the background is {background}",
    ]
    if len(objects) <= MOST_LISTED:
        sentences += [
            f"{number} {things} in {colours}",
            f"there {verb} {number} {things}: {_inventory(objects, rng)}",
            f"{_inventory(objects, rng)} on a {background} background",
        ]
    if len(objects) > 1:
        large = sum(item.size == "large" for item in objects)
        sentences.append(f"{number} {things}, {NUMBERS[large]} large and {NUMBERS[len(objects) - large]} small")
    ordered = sorted(objects, key=lambda item: item.x)
    if 1 < len(objects) <= MOST_LISTED and all(b.x - a.x >= CLEARLY_APART / 2 for a, b in zip(ordered, ordered[1:])):
        sentences.append(f"from left to right: {_inventory(ordered, rng)}")
    return [_article(sentence) for sentence in rng.sample(sentences, SCENE_SENTENCES)]


def _inventory(objects: Sequence[SceneObject], rng: random.Random) -> str:
    """A list of all objects; without colours if there are more than three, to stay short."""
    if len(objects) > 3:
        return _listed([f"a {_word(item.shape, rng)}" for item in objects])
    return _listed([f"a {_word(item.colour, rng)} {_word(item.shape, rng)}" for item in objects])


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _name(item: SceneObject, named: Counter, rng: random.Random) -> str:
    article = "the" if named[item.colour, item.shape] == 1 else "a"
    return f"{article} {_word(item.colour, rng)} {_word(item.shape, rng)}"


def name_with_article(item: SceneObject) -> str:
    """The object's colour and shape without synonyms: "a red star"."""
    return _article(f"a {item.colour} {item.shape}")


def _wording(item: SceneObject, rng: random.Random) -> dict[str, str]:
    """Random words for the fields of OBJECT_TEMPLATES."""
    fields = {name: _word(getattr(item, name), rng) for name in ("size", "texture", "colour", "shape")}
    return fields | {"place": rng.choice(PLACES[_third(item.x), _third(item.y)])}


def _third(position: float) -> int:
    return (position > 0.5 + EDGE) - (position < 0.5 - EDGE)


def _word(word: str, rng: random.Random) -> str:
    return rng.choice(SYNONYMS[word]) if word in SYNONYMS else word


def _article(sentence: str) -> str:
    """Replaces "a" by "an" before the only word that needs it."""
    return sentence.replace("a orange", "an orange")
