"""Stage 1: render the public emoji drawings, name their concepts, keep what may be trained on.

    python data/recipes/drawings.py

Packs the `@iconify-json/*` sets with npm, renders every drawing at 64x64 on white and writes

- `data/recipes/work/drawings.npz`: `images` (n, 64, 64, 3) uint8, `concept` (n,), `artist` (n,), `held_out` (n,)
- `data/drawings/drawings.png` and `.csv`: the drawings of the concepts in `concepts.txt`, which the library reads.

The share-alike sets (OpenMoji, EmojiOne v1) and monochrome ones are left out: they stay unseen styles.
"""

import io
import json
import re
import subprocess
import tarfile

import numpy as np
import resvg_py
from common import DRAWINGS, WORK, concepts, stage
from PIL import Image
from tqdm.auto import tqdm

SIZE = 64
HELD_OUT_CONCEPTS = 60  # whole concepts, outside concepts.txt, that no model sees in training
ARTISTS = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "twemoji", "emojione")

# Flags, keycaps, skin tones, clocks, buttons and letters are variants or signs, not things that artists draw freely.
DROP = re.compile(r"skin|-(dark|light|medium)(-|$)|flag|keycap|clock$|oclock|thirty|button|regional|^u[0-9a-f]{4}|^.$")

# FxEmoji names its drawings its own way; most agree with the other sets once hyphens are dropped, these do not.
FX_NAMES = {
    "sliceofpizza": "pizza", "pandaface": "panda", "bunny": "rabbit-face", "wolfface": "wolf", "racecar": "racing-car",
    "heartblue": "blue-heart", "heartgreen": "green-heart", "heartpurple": "purple-heart", "heartyellow": "yellow-heart",
    "lightbulb": "light-bulb", "evergreen": "evergreen-tree", "sunsetoverbuildings": "sunset", "moyai": "moai",
    "poo": "pile-of-poo", "hearteyes": "smiling-face-with-heart-eyes", "loudlycrying": "loudly-crying-face",
    "darksunglasses": "smiling-face-with-sunglasses", "lock": "locked", "gem": "gem-stone", "present": "wrapped-gift",
    "steamlocomotive": "locomotive", "cellphone": "mobile-phone", "basketballandhoop": "basketball",
    "europeancastle": "castle", "housebuilding": "house", "tennisball": "tennis", "whitemediumstar": "star",
    "grin": "grinning-face", "spurtingwhale": "spouting-whale", "bactriancamel": "two-hump-camel",
}  # fmt: skip


def load_set(name: str) -> dict:
    """The set's icon description, packed by npm into the work folder if it is not there yet."""
    folder = WORK / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"iconify-json-{name}-[0-9]*.tgz")):
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{name}"], cwd=folder, check=True)
    archive = next(folder.glob(f"iconify-json-{name}-[0-9]*.tgz"))
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def merge_names(sets: dict[str, dict]) -> dict[str, dict[str, str]]:
    """{concept: {artist: icon name}}: the sets' different names for one concept, joined.

    Two names are one concept when some set lists them as aliases or when they agree but for hyphens,
    unless a set draws both: then they are different things.
    """
    groups: dict[str, dict[str, str]] = {}
    for artist in ARTISTS:
        for name in sets[artist]["icons"]:
            if not DROP.search(name):
                groups.setdefault(FX_NAMES.get(name, name) if artist == "fxemoji" else name, {})[artist] = name
    root = {name: name for name in groups}

    def find(name: str) -> str:
        while root.get(name, name) != name:
            name = root[name]
        return name

    def merge(keep: str, other: str) -> None:
        keep, other = find(keep), find(other)
        ours, theirs = groups.get(keep, {}), groups.get(other, {})
        if keep != other and not set(ours) & set(theirs):
            root[other] = root[keep] = keep
            groups[keep] = ours | theirs
            groups.pop(other, None)

    for artist in ARTISTS:
        for alias, target in sets[artist].get("aliases", {}).items():
            plain = set(target) == {"parent"}  # an alias that also flips or turns the drawing is another drawing
            if plain and not DROP.search(alias) and not DROP.search(target["parent"]):
                merge(target["parent"], alias)
    squashed: dict[str, str] = {}
    for name in list(groups):
        merge(squashed.setdefault(name.replace("-", ""), name), name)
    return groups


def render(icon: dict, icon_set: dict, size: int = SIZE, mode: str = "RGB") -> np.ndarray:
    """One drawing, (size, size, 3) uint8 on white, or with "RGBA" transparent, its aspect kept."""
    width, height = (icon.get(k, icon_set.get(k, 16)) for k in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{size}" height="{size}">{icon["body"]}</svg>'
    )
    on = {"background": "white"} if mode == "RGB" else {}
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, **on))
    drawing = Image.open(io.BytesIO(png)).convert(mode)
    canvas = Image.new(mode, (size, size), "white" if mode == "RGB" else (255, 255, 255, 0))
    canvas.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    return np.asarray(canvas)


def publish(images: np.ndarray, concept: np.ndarray, artist: np.ndarray) -> None:
    """Write the chosen concepts' drawings: one row a concept, one column an artist."""
    names = concepts()
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (SIZE * len(ARTISTS), SIZE * len(names)), "white")
    lines = ["concept,artist,row,column"]
    for image, name, who in zip(images, concept, artist, strict=True):
        if name in names:
            row, column = names.index(name), ARTISTS.index(who)
            sheet.paste(Image.fromarray(image), (column * SIZE, row * SIZE))
            lines.append(f"{name},{who},{row},{column}")
    sheet.save(DRAWINGS / "drawings.png", optimize=True)
    (DRAWINGS / "drawings.csv").write_text("\n".join([lines[0], *sorted(lines[1:])]) + "\n")
    print(f"{len(lines) - 1} drawings of {len(names)} concepts published")


def render_all(size: int = SIZE, mode: str = "RGB") -> dict[str, np.ndarray]:
    """`images` of all concepts that four artists or more drew, as `render` makes them, `concept`, `artist` and `held_out`."""
    sets = {artist: load_set(artist) for artist in ARTISTS}
    groups = {name: group for name, group in merge_names(sets).items() if len(group) >= 4}
    few = [name for name in concepts() if len(groups.get(name, {})) < 5]
    if few:
        raise SystemExit(
            f"drawn by fewer than five artists: {', '.join(f'{n} {list(groups.get(n, {}))}' for n in few)}"
        )
    rows = [(name, who, icon) for name, group in sorted(groups.items()) for who, icon in group.items()]
    images = [render(sets[who]["icons"][icon], sets[who], size, mode) for _, who, icon in tqdm(rows, desc="render")]
    concept, artist = (np.array([row[i] for row in rows]) for i in (0, 1))
    spare = sorted(set(groups) - set(concepts()))
    held_out = np.random.default_rng(0).choice(spare, HELD_OUT_CONCEPTS, replace=False)
    return {
        "images": np.stack(images), "concept": concept, "artist": artist, "held_out": np.isin(concept, held_out)
    }  # fmt: skip


def main() -> None:
    arrays = render_all()
    np.savez_compressed(WORK / "drawings.npz", **arrays)
    publish(arrays["images"], arrays["concept"], arrays["artist"])
    count = len(set(arrays["concept"]))
    print(f"{len(arrays['images'])} drawings of {count} concepts rendered, {HELD_OUT_CONCEPTS} concepts held out")


if __name__ == "__main__":
    with stage("drawings"):
        main()
