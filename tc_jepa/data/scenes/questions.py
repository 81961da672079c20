"""Questions about a scene with one answer each, in the words of its captions."""

from collections import Counter

from tc_jepa.data.scenes.captions import relations
from tc_jepa.data.scenes.scene import NUMBERS, Scene
from tc_jepa.data.sources import Question

SIDES = {"left": ("left of", "right of"), "above": ("above", "below")}  # of captions.relations: {a} of {b}, and back


def questions(scene: Scene) -> list[Question]:
    """Of attributes of the objects that the question names alone, of what is beside them, and of the whole scene."""
    objects = scene.objects
    shapes, colours = (Counter(getattr(item, kind) for item in objects) for kind in ("shape", "colour"))
    asked = [Question("how many objects are there", (NUMBERS[len(objects)],), "count")]
    asked.append(Question("what is the background", (scene.background.pattern,), "background"))
    for item in objects:
        if shapes[item.shape] == 1:
            asked.append(Question(f"what colour is the {item.shape}", (item.colour,), "colour"))
        if colours[item.colour] == 1:
            asked.append(Question(f"what shape is {item.colour}", (item.shape,), "shape"))
    beside: dict[str, set[str]] = {}
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            for relation, first, second in relations(a, b, covered=False):
                if relation in SIDES:
                    here, back = SIDES[relation]
                    if shapes[second.shape] == 1:
                        beside.setdefault(f"what is {here} the {second.shape}", set()).add(first.shape)
                    if shapes[first.shape] == 1:
                        beside.setdefault(f"what is {back} the {first.shape}", set()).add(second.shape)
    asked += [Question(text, tuple(found), "place") for text, found in beside.items() if len(found) == 1]
    return asked
