"""Data sets by name and by file, in numpy: a training part of which a fixed slice is held out, and a test part.

The test part is read when `test()` is called and not before: every decision of a search is made without it. Batching
and shuffling live in train.py. Knows nothing of networks.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import detection, quant, scenes
from .errors import CorruptError, EnvironmentMissing, UsageError, close
from .factory import call_factory, is_factory

Shape = tuple[int, int, int]

KINDS = ("digits", "cifar10", "cifar100", "imagefolder", "detection", "random")
CLASSIFICATION, DETECTION = "classification", "detection"  # tasks: what labels mean
HELD_OUT = 10  # every 10th image of the training part validates
TEST_OF_INDEX = 9  # every 9th file of an index.csv, in sorted order, is its test part
DIGITS_TEST = 500
DRAWN = 400  # backgrounds of `detection` without photographs
CROP_PAD = 4  # pixels around a CIFAR image that random crops may reach
RESIZE = 256 / 224  # shorter side before the centre crop, in units of the crop
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})

test_reads: list[str] = []  # specs whose test part has been read in this process, in order: what tests look at

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_LABELS = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)


class Images(Protocol):
    """Images [n, C, H, W] by number, slice or array of numbers: an ndarray, or files decoded when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, C, H, W]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or float32 for images that are normalised already."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Split:
    """Images (uint8, or float32 where the set is normalised) and labels: int64 [n], or boxes float32 [n, 4]."""

    images: Images
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set. `files`: name -> SHA-256 of what the training part was read from.

    `sparse`: the class numbers are those of a larger list of which not all occur. `divisor`: uint8 images are divided
    by this first (255; 16 for digits). `task`: what labels mean; of DETECTION they are boxes as core.detection has
    them, and `classes` are the values a place.
    """

    spec: str
    classes: int
    shape: Shape
    labels: tuple[str, ...]  # class names, empty where unknown
    train: Split
    validation: Split
    read_test: Callable[[], Split]
    files: Mapping[str, str] = field(default_factory=dict)
    divisor: int = 255
    crop: int = 0  # pixels of padding for random crops, with random flips; 0: no augmentation by crops
    flip: bool = False
    sparse: bool = False
    task: str = CLASSIFICATION

    def test(self) -> Split:
        """The test part, read now; a caller does this once, at the end. UsageError where there is none."""
        test_reads.append(self.spec)
        return self.read_test()

    def normalise(self, images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
        """Raw images [n, C, H, W] -> float32 (x/255 - mean)/std (x/16 for digits), each operation rounded.

        float32 images are normalised already and are returned as they are.
        """
        if images.dtype != np.uint8:
            return np.ascontiguousarray(images, np.float32)
        if len(mean) != images.shape[1] or len(std) != images.shape[1]:
            raise UsageError(
                f"{self.spec}: images have {images.shape[1]} channels, mean {len(mean)} and std {len(std)} values"
            )
        m, s = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if self.divisor == 255:
            return quant.normalize_u8(images, m, s)
        x = images.astype(np.float32) / np.float32(self.divisor)
        x = x - m.reshape(1, -1, 1, 1)
        return x / s.reshape(1, -1, 1, 1)

    def augment(
        self, images: np.ndarray, rng: np.random.Generator, *, of: int | None = None, first: int = 0
    ) -> np.ndarray:
        """A training batch moved by random crops of the padded images and random flips, where the set wants that.

        `of`, `first`: `images` are those from `first` on of a batch of `of`, which takes its chances as a whole.
        """
        of, own = len(images) if of is None else of, slice(first, first + len(images))
        if self.crop:
            images = _random_crop(images, self.crop, rng.integers(0, 2 * self.crop + 1, (2, of))[:, own])
        if self.flip:
            mirrored = (rng.random(of) < 0.5)[own]
            images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
        return images

    def require_fit(self, in_shape: Sequence[int], outputs: int | Sequence[int]) -> None:
        """UsageError with the numbers unless a network with that input and outputs can be used on this set.

        `outputs`: their number, or their shape where it is known.
        """
        shape = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        count = math.prod(shape)
        if tuple(in_shape) != self.shape:
            raise UsageError(
                f"{self.spec} has images of shape {_commas(self.shape)}, the model takes {_commas(in_shape)} (C,H,W)"
            )
        if self.task == DETECTION:
            grid = detection.grid_of(in_shape, count)
            if grid is None or not (isinstance(outputs, int) or shape == (detection.HEAD, *grid)):
                raise UsageError(
                    f"{self.spec} has boxes, and the model's outputs {_commas(shape)} are no grid of {detection.HEAD} "
                    f"values a place over {_commas(in_shape)}: take a detector, for example skynet"
                )
        elif self.classes != count and not (self.sparse and self.classes <= count):
            raise UsageError(f"{self.spec} has {self.classes} classes, the model {count}: see --classes")


def load(spec: str, *, in_shape: Shape | None = None, seed: int = 0) -> Data:
    """The data set that `spec` names, its training part read (photographs: listed).

    `in_shape` is the model's: photographs are cut to it, `random:N` is made of it. UsageError says what is missing,
    CorruptError what is damaged, EnvironmentMissing which extra is not there.
    """
    name, _, rest = spec.partition(":")
    if spec == "digits":
        return _digits()
    if is_factory(spec):
        return _factory(spec)
    if name in ("cifar10", "cifar100") and rest:
        return _cifar(spec, name, Path(rest))
    if name == "imagefolder" and rest:
        return _imagefolder(spec, Path(rest), in_shape or (3, 224, 224))
    if name == "detection" and (rest or spec == name):
        return _detection(spec, Path(rest) if rest else None, in_shape or (3, 160, 320))
    if name == "random" and rest:
        return _random(spec, rest, in_shape, seed)
    if name in KINDS and name not in ("digits", "detection") and not rest:
        wanted = {"random": "random:N, with N images"}.get(name, f"{name}:DIR, with the folder that holds it")
        raise UsageError(f"data {spec!r}: write {wanted}")
    raise UsageError(
        f"unknown data {spec!r}{close(name, KINDS)}: known are digits, cifar10:DIR, cifar100:DIR, imagefolder:DIR, "
        "detection, detection:DIR, file.py:factory, and random:N for calibration"
    )


def held_out(count: int) -> np.ndarray:
    """bool [count]: the images of a training part that validate; the same for everybody.

    >>> np.flatnonzero(held_out(25)).tolist()
    [9, 19]
    """
    return np.arange(count) % HELD_OUT == HELD_OUT - 1


def _parts(images: np.ndarray, labels: np.ndarray) -> tuple[Split, Split]:
    out = held_out(len(labels))
    return Split(images[~out], labels[~out]), Split(images[out], labels[out])


def _commas(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# digits


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentMissing(
            f"digits needs scikit-learn, which cannot be imported ({error}): pip install 'bitpress[search]'"
        ) from error
    found = load_digits()
    images = found.images.astype(np.uint8)[:, None]  # 0 .. 16
    labels = found.target.astype(np.int64)
    order = np.random.RandomState(0).permutation(len(labels))  # a generator that numpy has promised never to change
    mine, theirs = order[DIGITS_TEST:], order[:DIGITS_TEST]
    train, validation = _parts(images[mine], labels[mine])
    return Data(
        "digits", 10, (1, 8, 8), tuple(map(str, range(10))), train, validation,
        lambda: Split(images[theirs], labels[theirs]),
        files={"digits": _digest(images[mine], labels[mine])}, divisor=16,
    )  # fmt: skip


# CIFAR


@dataclass(frozen=True, slots=True)
class _Layout:
    """Files of an official binary layout; a record is `label_bytes` (the last one counts), then 3072 bytes."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    labels: tuple[str, ...]


_CIFAR = {
    "cifar10": _Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        1,
        CIFAR10_LABELS,
    ),
    "cifar100": _Layout("cifar-100-binary", ("train.bin",), ("test.bin",), 2, CIFAR100_LABELS),
}


def _cifar(spec: str, name: str, folder: Path) -> Data:
    layout = _CIFAR[name]
    inner = folder / layout.folder
    root = inner if inner.is_dir() else folder
    missing = [f for f in (*layout.train, *layout.test) if not (root / f).is_file()]
    if missing:
        raise UsageError(
            f"{spec}: {root} lacks {', '.join(missing)}; expected the binary version of {name.upper()} "
            f"({layout.folder}/)"
        )
    files: dict[str, str] = {}
    images, labels = _read_cifar(root, layout.train, layout, files)
    train, validation = _parts(images, labels)
    return Data(
        spec, len(layout.labels), (3, 32, 32), layout.labels, train, validation,
        lambda: Split(*_read_cifar(root, layout.test, layout, {})),
        files=files, crop=CROP_PAD, flip=True,
    )  # fmt: skip


def _read_cifar(
    root: Path, names: tuple[str, ...], layout: _Layout, files: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 3, 32, 32] and labels; `files` is told the digests."""
    width = layout.label_bytes + 3072
    parts = []
    for name in names:
        raw = np.fromfile(root / name, np.uint8)
        if raw.size == 0 or raw.size % width:
            raise CorruptError(f"{root / name} has {raw.size} bytes, which is no multiple of {width}")
        files[name] = hashlib.sha256(raw.data).hexdigest()
        parts.append(raw.reshape(-1, width))
    records = np.concatenate(parts) if len(parts) > 1 else parts[0]
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(layout.labels):
        raise CorruptError(f"{root}: a label is {labels.max()}, there are {len(layout.labels)} classes")
    return records[:, layout.label_bytes :].reshape(-1, 3, 32, 32), labels


def _random_crop(images: np.ndarray, pad: int, at: np.ndarray) -> np.ndarray:
    """Crops of the padded images that begin `at` rows and columns, [2, n] within 0 .. 2 pad."""
    n, _, h, w = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))
    return windows[np.arange(n), :, at[0], at[1]]


# photographs


@dataclass(frozen=True, slots=True)
class Photos:
    """Image files as uint8 [n, C, H, W], decoded when asked for: shorter side resized, then the centre cut out."""

    paths: tuple[Path, ...]
    size: Shape

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, C, H, W]."""
        return (len(self.paths), *self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        chosen = np.arange(len(self.paths))[index]
        if chosen.ndim == 0:
            return _decode(self.paths[int(chosen)], self.size)
        out = np.empty((len(chosen), *self.size), np.uint8)
        for i, number in enumerate(chosen):
            out[i] = _decode(self.paths[int(number)], self.size)
        return out


def _decode(path: Path, size: Shape) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentMissing(
            f"photographs need pillow, which cannot be imported ({error}): pip install 'bitpress[search]'"
        ) from error
    channels, height, width = size
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise UsageError(f"there is no image {path}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptError(f"{path} is no image that can be read: {error}") from error
    scale = max(round(height * RESIZE) / image.height, round(width * RESIZE) / image.width)
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _imagefolder(spec: str, root: Path, size: Shape) -> Data:
    if size[0] not in (1, 3):
        raise UsageError(f"{spec}: photographs have 1 or 3 channels, the model takes {size[0]}")
    if (root / "index.csv").is_file():
        return _indexed(spec, root, size)
    missing = [name for name in ("train", "val") if not (root / name).is_dir()]
    if missing:
        raise UsageError(
            f"{spec}: {root} has neither index.csv nor the folder{'s' * (len(missing) > 1)} {' and '.join(missing)}/"
        )
    names = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
    if not names:
        raise UsageError(f"{spec}: {root / 'train'} has no class folders")

    def listed(part: str) -> tuple[tuple[Path, ...], np.ndarray]:
        strange = sorted({p.name for p in (root / part).iterdir() if p.is_dir()} - set(names))
        if strange:
            raise UsageError(f"{spec}: {part}/ has classes that train/ lacks: {', '.join(strange[:3])}")
        rows = [
            (path, number)
            for number, name in enumerate(names)
            if (root / part / name).is_dir()
            for path in sorted((root / part / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not rows:
            raise UsageError(f"{spec}: {root / part} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        return tuple(path for path, _ in rows), np.array([number for _, number in rows], np.int64)

    def test() -> Split:
        paths, labels = listed("val")
        return Split(Photos(paths, size), labels)

    paths, labels = listed("train")
    train, validation = _photo_parts(paths, labels, size)
    return Data(
        spec, len(names), size, names, train, validation, test, files={"train": _listing(root, paths)}, flip=True
    )


def _indexed(spec: str, root: Path, size: Shape) -> Data:
    """Photographs listed in index.csv; labels are class numbers, or names that are numbered in sorted order."""
    index = root / "index.csv"
    try:
        with index.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptError(f"{index} is no CSV: {error}") from error
    if not table or any(row.get("file") is None or row.get("label") is None for row in table):
        raise UsageError(f"{spec}: {index} needs a header with the columns file and label, and a row per image")
    rows = sorted((row["file"], row["label"]) for row in table)
    numeric = all(label.strip().isdecimal() for _, label in rows)
    names = () if numeric else tuple(sorted({label for _, label in rows}))
    numbers = np.array([int(label) if numeric else names.index(label) for _, label in rows], np.int64)
    tested = np.arange(len(rows)) % TEST_OF_INDEX == TEST_OF_INDEX - 1
    paths = [root / name for name, _ in rows]
    mine = tuple(p for p, t in zip(paths, tested, strict=True) if not t)
    theirs = tuple(p for p, t in zip(paths, tested, strict=True) if t)
    missing = [p for p in mine if not p.is_file()]
    if missing:
        raise UsageError(f"{spec}: {len(missing)} of {len(mine)} training images are missing, {missing[0]} first")
    if not theirs:
        raise UsageError(f"{spec}: {len(rows)} images are too few: every {TEST_OF_INDEX}th is a test image")
    train, validation = _photo_parts(mine, numbers[~tested], size)
    return Data(
        spec, int(numbers.max()) + 1, size, names, train, validation,
        lambda: Split(Photos(theirs, size), numbers[tested]),
        files={"index.csv": hashlib.sha256(index.read_bytes()).hexdigest(), "train": _listing(root, mine)},
        flip=True, sparse=numeric,
    )  # fmt: skip


def _photo_parts(paths: tuple[Path, ...], labels: np.ndarray, size: Shape) -> tuple[Split, Split]:
    out = held_out(len(paths))

    def part(chosen: np.ndarray) -> Split:
        return Split(Photos(tuple(p for p, c in zip(paths, chosen, strict=True) if c), size), labels[chosen])

    return part(~out), part(out)


def _listing(root: Path, paths: tuple[Path, ...]) -> str:
    """SHA-256 over names and sizes: the contents of a million photographs are not read to compare two runs."""
    lines = (f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# one object a picture


def _detection(spec: str, root: Path | None, size: Shape) -> Data:
    """Scenes on the photographs of a folder, or on drawn backgrounds; the parts share no photograph."""
    if size[0] not in (1, 3):
        raise UsageError(f"{spec}: photographs have 1 or 3 channels, the model takes {size[0]}")
    paths = () if root is None else _photographs(spec, root)

    def picture(number: int, shape: Shape) -> np.ndarray:
        return _decode(paths[number], shape) if paths else scenes.background(number, shape)

    numbers = np.arange(len(paths) or DRAWN)
    tested = numbers % TEST_OF_INDEX == TEST_OF_INDEX - 1
    mine = numbers[~tested]
    out = held_out(len(mine))

    def part(chosen: np.ndarray) -> Split:
        return Split(*scenes.scenes(chosen.tolist(), size, picture))

    train, validation = part(mine[~out]), part(mine[out])
    files = {"boxes": _digest(train.labels)}
    if root is not None:
        files["train"] = _listing(root, tuple(paths[i] for i in mine))
    return Data(
        spec, detection.HEAD, size, (), train, validation, lambda: part(numbers[tested]), files=files, task=DETECTION
    )


def _photographs(spec: str, root: Path) -> tuple[Path, ...]:
    """Every image below a folder, in the order of the names; enough for three parts."""
    if not root.is_dir():
        raise UsageError(f"{spec}: there is no folder {root}")
    found = tuple(sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES))
    least = TEST_OF_INDEX + HELD_OUT
    if len(found) < least:
        raise UsageError(f"{spec}: {root} has {len(found)} images, at least {least} are needed for three parts")
    return found


# a user's own


def _factory(spec: str) -> Data:
    made = call_factory(spec)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise UsageError(f"{spec} returns {type(made).__name__}, not a training and a test set")
    images, labels = _stacked(spec, made[0], "training")
    names = tuple(str(c) for c in getattr(made[0], "classes", ()) or ())
    classes = max(len(names), int(labels.max()) + 1)
    train, validation = _parts(images, labels)

    def test() -> Split:
        pictures, numbers = _stacked(spec, made[1], "test")
        if pictures.shape[1:] != images.shape[1:] or numbers.max() >= classes:
            raise UsageError(
                f"{spec}: the test set has images {list(pictures.shape[1:])} and labels up to {numbers.max()}, "
                f"the training set {list(images.shape[1:])} and {classes} classes"
            )
        return Split(pictures, numbers)

    return Data(
        spec, classes, tuple(images.shape[1:]), names, train, validation, test, files={"train": _digest(images, labels)}
    )


def _stacked(spec: str, items: Any, which: str) -> tuple[np.ndarray, np.ndarray]:
    """A map-style set as float32 [n, C, H, W] and int64 [n]; UsageError names the first item that is something else."""
    try:
        count = len(items)
        pairs = [items[i] for i in range(count)]
        images = [np.asarray(pair[0]) for pair in pairs]
        labels = np.array([int(pair[1]) for pair in pairs], np.int64)
    except Exception as error:  # of the user's own class
        raise UsageError(f"{spec}: the {which} set fails: {type(error).__name__}: {error}") from error
    if not count:
        raise UsageError(f"{spec}: the {which} set is empty")
    for i, image in enumerate(images):
        if image.dtype != np.float32 or image.ndim != 3 or image.shape != images[0].shape:
            raise UsageError(
                f"{spec}: item {i} of the {which} set is {image.dtype} {list(image.shape)}, expected float32 [C, H, W]"
                + (f" as item 0, {list(images[0].shape)}" if i else "")
            )
        if not np.isfinite(image).all():
            raise CorruptError(f"{spec}: item {i} of the {which} set holds NaN or infinity")
    if labels.min() < 0:
        raise UsageError(f"{spec}: a label of the {which} set is {labels.min()}, expected 0 or more")
    return np.stack(images), labels


# noise


def _random(spec: str, count: str, in_shape: Shape | None, seed: int) -> Data:
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"{spec}: expected random:N with N at least 1")
    if in_shape is None:
        raise UsageError(f"{spec} needs the shape of the model's input")
    images = np.random.default_rng(seed).standard_normal((int(count), *in_shape)).astype(np.float32)
    labels = np.zeros(int(count), np.int64)

    def test() -> Split:
        raise UsageError(f"{spec} is for calibration: it has no labels and no test part")

    return Data(spec, 0, in_shape, (), Split(images, labels), Split(images[:0], labels[:0]), test)
