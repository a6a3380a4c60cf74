"""Stage 1: render the public emoji drawings, name their concepts, keep what may be trained on.

    python data/recipes/drawings.py

Packs the `@iconify-json/*` sets with npm, renders every drawing with its transparency and writes

- `data/recipes/work/rgba.npz`: `images` (n, 96, 96, 4) uint8, `concept` (n,), `artist` (n,), `held_out` (n,)
- `data/drawings/drawings.png` and `.csv`: painted pictures of the concepts in `concepts.txt`, which the library reads.

The share-alike sets (OpenMoji, EmojiOne v1) and monochrome ones are left out: they stay unseen styles.
"""

import io
import json
import re
import subprocess
import tarfile

import numpy as np
import resvg_py
import torch
from common import DRAWINGS, WORK, concepts, stage
from PIL import Image
from tqdm.auto import tqdm
from world import RENDERED, SIDE, World, sample_factors

from dtviz.metrics.factors import FACTORS

PAINTINGS, COLUMNS = 2, 28  # published pictures of each drawing, and a row of them
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


def render(icon: dict, icon_set: dict) -> np.ndarray:
    """One drawing, (96, 96, 4) uint8, its aspect kept, colours multiplied by its opacity."""
    width, height = (icon.get(k, icon_set.get(k, 16)) for k in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{RENDERED}" height="{RENDERED}">{icon["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", (RENDERED, RENDERED), (255, 255, 255, 0))
    canvas.paste(drawing, ((RENDERED - drawing.width) // 2, (RENDERED - drawing.height) // 2))
    pixels = np.array(canvas)
    pixels[..., :3] = (pixels[..., :3] * pixels[..., 3:].astype(np.uint16) + 127) // 255
    return pixels


def publish() -> None:
    """Write `PAINTINGS` pictures of every drawing of the chosen concepts, with their factors."""
    world, names = World(), concepts()
    order = [
        (names.index(world.concept[row]), world.artist[row], row) for row in np.isin(world.concept, names).nonzero()[0]
    ]
    rows = torch.tensor([row for *_, row in sorted(order) for _ in range(PAINTINGS)])
    factors = sample_factors(len(rows), generator=torch.Generator().manual_seed(1))
    images = world.paint(rows, factors).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(rows) // COLUMNS) * SIDE), "white")
    lines = [",".join(["concept", "artist", *FACTORS, "row", "column"])]
    for i, (image, row) in enumerate(zip(images, rows.tolist(), strict=True)):
        y, x = divmod(i, COLUMNS)
        sheet.paste(Image.fromarray(image), (x * SIDE, y * SIDE))
        values = [FACTORS[name][factors[name][i]] for name in FACTORS]
        lines.append(",".join([world.concept[row], world.artist[row], *values, str(y), str(x)]))
    sheet.save(DRAWINGS / "drawings.png", optimize=True)
    (DRAWINGS / "drawings.csv").write_text("\n".join(lines) + "\n")
    print(f"{len(rows)} pictures of {len(names)} concepts published")


def render_all() -> dict[str, np.ndarray]:
    """`images` of all concepts that four artists or more drew, as `render` makes them, `concept`, `artist` and `held_out`."""
    sets = {artist: load_set(artist) for artist in ARTISTS}
    groups = {name: group for name, group in merge_names(sets).items() if len(group) >= 4}
    few = [f"{name} {list(groups.get(name, {}))}" for name in concepts() if len(groups.get(name, {})) < 5]
    if few:
        raise SystemExit(f"drawn by fewer than five artists: {', '.join(few)}")
    rows = [(name, who, icon) for name, group in sorted(groups.items()) for who, icon in group.items()]
    images = [render(sets[who]["icons"][icon], sets[who]) for _, who, icon in tqdm(rows, desc="render", mininterval=5)]
    concept, artist = (np.array([row[i] for row in rows]) for i in (0, 1))
    held_out = np.isin(concept, concepts("held_out"))
    return {"images": np.stack(images), "concept": concept, "artist": artist, "held_out": held_out}


def main() -> None:
    np.savez_compressed(WORK / "rgba.npz", **render_all())
    publish()


if __name__ == "__main__":
    with stage("drawings"):
        main()
