"""Stage 14: sliders and styles on the base, and one of each on every student, for Control Distillation.

    python data/recipes/controls.py                     # resumes what was killed, leaves what is done
    python data/recipes/controls.py --only age          # of several processes, each its own

Sliders are trained from texts alone, styles on the drawings of artists whom no model has seen (OpenMoji, Fluent Emoji
High Contrast, EmojiOne v1) of the concepts that the pairs are *not* studied on, so that what a style does to the studied
ones is new to it. Writes `data/controls`.
"""

from common import DATA

CONTROLS = DATA / "controls"
STUDENTS = ("emoji-dmd", "emoji-lcm", "emoji-turbo", "emoji-lightning")
REVERSED = ("age", "openmoji")  # also trained on every student

# Both ends were drawn by every artist, so the text encoder knows them; the targets include the ends.
SLIDERS = {
    "age": {"positive": "man", "negative": "baby", "target": ["man", "baby", "woman", "girl"]},
    "smile": {
        "positive": "grinning face",
        "negative": "angry face",
        "target": [
            "grinning face",
            "angry face",
            "loudly crying face",
            "smiling face with sunglasses",
            "man",
            "baby",
            "woman",
        ],
    },
    "green": {
        "positive": "green apple",
        "negative": "red apple",
        "target": ["green apple", "red apple", "tomato", "strawberry", "pear"],
    },
}
# Published: eta 4, alpha 1, lr 2e-4, 1000 iterations of one sample, 50 steps. A network of 7 M takes a larger step and larger
# batches; at eta 4 its pictures fall apart, since its two ends are whole concepts and not words added to one.
SLIDER = {"eta": 1.0, "rank": 4, "alpha": 4.0, "lr": 2e-3, "iterations": 300, "batch_size": 8}
