"""Data sets: parts that never overlap, a test part that nobody opens early, the law of normalising, named mistakes."""

from __future__ import annotations

import builtins
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitpress.core import data
from bitpress.core.data import Data, load
from bitpress.core.errors import CorruptError, EnvironmentMissing, UsageError


def cifar10(folder: Path, *, per_file: int = 20, seed: int = 0) -> Path:
    """A small set in the official layout; the first pixel of an image is its number."""
    root = folder / "cifar-10-batches-bin"
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        records = rng.integers(0, 256, (per_file, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(per_file) % 10
        records[:, 1] = i * per_file + np.arange(per_file)
        records.tofile(root / name)
    return folder


def cifar100(folder: Path) -> Path:
    root = folder / "cifar-100-binary"
    root.mkdir(parents=True)
    for name, n in (("train.bin", 200), ("test.bin", 50)):
        records = np.zeros((n, 3074), np.uint8)
        records[:, 0], records[:, 1] = 19, np.arange(n) % 100
        records.tofile(root / name)
    return folder


def photo(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="photographs need pillow: extra [search]")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, colour).save(path)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened from now on, by numpy's reader and by Python's."""
    seen: list[str] = []
    fromfile, opened = np.fromfile, builtins.open

    def spy_fromfile(path: object, *args: object, **kwargs: object) -> np.ndarray:
        seen.append(Path(str(path)).name)
        return fromfile(path, *args, **kwargs)

    def spy_open(path: object, *args: object, **kwargs: object) -> object:
        seen.append(Path(str(path)).name)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(np, "fromfile", spy_fromfile)
    monkeypatch.setattr(builtins, "open", spy_open)
    return seen


def test_digits_have_a_fixed_split() -> None:
    pytest.importorskip("sklearn", reason="digits needs scikit-learn: extra [search]")
    found, again = load("digits"), load("digits")
    before = len(data.test_reads)
    test = found.test()
    assert data.test_reads[before:] == ["digits"]
    assert (found.classes, found.shape, found.labels[:2]) == (10, (1, 8, 8), ("0", "1"))
    assert len(test) >= 500
    assert len(found.train) + len(found.validation) + len(test) == 1797
    assert found.train.images[:].dtype == np.uint8
    assert (found.train.images.min(), found.train.images.max()) == (0, 16)
    np.testing.assert_array_equal(found.train.images, again.train.images)
    np.testing.assert_array_equal(test.labels, again.test().labels)
    for part in (found.train, found.validation, test):
        assert part.labels.dtype == np.int64
        assert np.bincount(part.labels, minlength=10).min() >= 5
    rows = [p.images.reshape(len(p), -1) for p in (found.train, found.validation, test)]
    joined = {bytes(r) for r in rows[0]} | {bytes(r) for r in rows[1]}
    assert not joined & {bytes(r) for r in rows[2]}
    # the split may never change: results of different versions are compared
    assert found.files["digits"].startswith("c68037e423596c75")


def test_digits_are_sixteenths() -> None:
    pytest.importorskip("sklearn", reason="digits needs scikit-learn: extra [search]")
    found = load("digits")
    x = found.normalise(found.train.images[:4], (0.0,), (1.0,))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x * 16, found.train.images[:4])
    np.testing.assert_array_equal(
        found.normalise(found.train.images[:4], (0.5,), (0.25,)), (x - np.float32(0.5)) / np.float32(0.25)
    )
    np.testing.assert_array_equal(
        found.augment(found.train.images[:4], np.random.default_rng(0)), found.train.images[:4]
    )


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(EnvironmentMissing, match=r"bitpress\[search\]"):
        load("digits")


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path: Path, inner: str) -> None:
    found = load(f"cifar10:{cifar10(tmp_path) / inner}")
    assert (found.classes, found.shape, found.labels[3]) == (10, (3, 32, 32), "cat")
    numbers = found.train.images[:, 0, 0, 0]
    held = found.validation.images[:, 0, 0, 0]
    assert held.tolist() == list(range(9, 100, 10))
    assert sorted([*numbers, *held]) == list(range(100))
    np.testing.assert_array_equal(found.train.labels, numbers % 20 % 10)
    assert found.test().images[:, 0, 0, 0].tolist() == list(range(100, 120))


def test_cifar_records_are_planes(tmp_path: Path) -> None:
    found = load(f"cifar10:{cifar10(tmp_path)}")
    raw = np.fromfile(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8)[:3073]
    assert found.train.images[0, 2, 31, 30] == raw[1 + 2 * 1024 + 31 * 32 + 30]
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    assert found.files["data_batch_3.bin"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    found = load(f"cifar100:{cifar100(tmp_path)}")
    assert (found.classes, len(found.train), len(found.validation)) == (100, 180, 20)
    assert found.train.labels[:3].tolist() == [0, 1, 2]
    assert (len(set(found.labels)), found.labels[0], found.labels[99]) == (100, "apple", "worm")
    assert found.labels == tuple(sorted(found.labels))
    assert found.test().labels.tolist() == list(range(50))


def test_the_test_file_is_not_opened_early(tmp_path: Path, watched: list[str]) -> None:
    found = load(f"cifar10:{cifar10(tmp_path)}")
    watched.clear()
    found = load(f"cifar10:{tmp_path}")
    rng = np.random.default_rng(0)
    batch = found.augment(found.train.images[:4], rng)
    found.normalise(batch, (0.5,) * 3, (0.5,) * 3)
    found.require_fit((3, 32, 32), 10)
    assert set(watched) == {f"data_batch_{k}.bin" for k in range(1, 6)}
    assert "test_batch.bin" not in found.files
    before = len(data.test_reads)
    found.test()
    assert watched[-1] == "test_batch.bin"
    assert data.test_reads[before:] == [found.spec]


def test_missing_files_are_listed(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(UsageError, match=r"lacks data_batch_4\.bin, test_batch\.bin"):
        load(f"cifar10:{tmp_path}")
    with pytest.raises(UsageError, match=r"lacks train\.bin, test\.bin; expected .*CIFAR100"):
        load(f"cifar100:{tmp_path}")


def test_damaged_cifar(tmp_path: Path) -> None:
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptError, match=rf"data_batch_2.bin has {len(whole) - 1} bytes, .* no multiple of 3073"):
        load(f"cifar10:{tmp_path}")
    path.write_bytes(b"\xc8" + whole[1:])
    with pytest.raises(CorruptError, match="a label is 200, there are 10 classes"):
        load(f"cifar10:{tmp_path}")


def test_the_law_of_normalising(tmp_path: Path) -> None:
    found = load(f"cifar10:{cifar10(tmp_path)}")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = found.train.images[:3]
    got = found.normalise(images, mean, std)
    for c in range(3):  # each operation rounded to float32
        want = (images[:, c].astype(np.float32) / np.float32(255) - np.float32(mean[c])) / np.float32(std[c])
        np.testing.assert_array_equal(got[:, c], want)
    assert got.flags.c_contiguous
    with pytest.raises(UsageError, match="3 channels, mean 1 and std 1"):
        found.normalise(images, (0.5,), (0.5,))


def test_augmentation_moves_and_mirrors(tmp_path: Path) -> None:
    found = load(f"cifar10:{cifar10(tmp_path)}")
    images = np.repeat(found.train.images[:1], 64, 0)
    moved = found.augment(images, np.random.default_rng(1))
    assert moved.shape == images.shape
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(moved, found.augment(images, np.random.default_rng(1)))
    share = found.augment(images[16:32], np.random.default_rng(1), of=64, first=16)
    np.testing.assert_array_equal(share, moved[16:32])  # a share of a batch moves as the whole one does
    padded = np.pad(images[0], ((0, 0), (4, 4), (4, 4)))
    windows = {
        padded[:, y : y + 32, x : x + 32][..., ::step].tobytes() for y in range(9) for x in range(9) for step in (1, -1)
    }
    assert all(m.tobytes() in windows for m in moved)
    assert len({m.tobytes() for m in moved}) > 30


def test_a_set_says_whether_it_fits(tmp_path: Path) -> None:
    found = load(f"cifar10:{cifar10(tmp_path)}")
    found.require_fit((3, 32, 32), 10)
    with pytest.raises(UsageError, match="10 classes, the model 100: see --classes"):
        found.require_fit((3, 32, 32), 100)
    with pytest.raises(UsageError, match="shape 3,32,32, the model takes 1,8,8"):
        found.require_fit((1, 8, 8), 10)


def folders(root: Path) -> Path:
    for part, count in (("train", 12), ("val", 3)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(count):
                photo(root / part / name / f"{i:02}.png", (40, 50), (100 * number, i, 0))
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def test_class_folders(tmp_path: Path) -> None:
    found = load(f"imagefolder:{folders(tmp_path)}", in_shape=(3, 28, 28))
    assert (found.classes, found.labels, found.shape) == (2, ("cat", "dog"), (3, 28, 28))
    assert (len(found.train), len(found.validation)) == (22, 2)
    assert found.train.images.shape == (22, 3, 28, 28)
    assert found.train.images.dtype == np.uint8
    first = found.train.images[:3]
    assert first[:, 1, 14, 14].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.train.images[np.array([2, 0])], first[[2, 0]])
    assert found.train.images[1].shape == (3, 28, 28)
    test = found.test()
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.images[:][:, 0, 0, 0].tolist() == [0, 0, 0, 100, 100, 100]
    np.testing.assert_array_equal(load(found.spec, in_shape=(1, 8, 8)).train.images[:2].shape, (2, 1, 8, 8))


def test_class_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither index.csv nor the folders train and val/"):
        load(f"imagefolder:{tmp_path}")
    folders(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    found = load(f"imagefolder:{tmp_path}", in_shape=(3, 8, 8))
    with pytest.raises(UsageError, match="val/ has classes that train/ lacks: wolf"):
        found.test()
    with pytest.raises(UsageError, match="1 or 3 channels, the model takes 4"):
        load(f"imagefolder:{tmp_path}", in_shape=(4, 8, 8))


def test_an_image_is_resized_and_its_centre_cut(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="photographs need pillow: extra [search]")
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255  # the square in the middle
    path = tmp_path / "a.png"
    image.fromarray(pixels).save(path)
    got = data.Photos((path,), (3, 56, 56))[0]
    assert got.shape == (3, 56, 56)
    assert got.min() == 255  # 64 of 128 columns are white, the cut takes the inner 56
    image.fromarray(np.full((3, 2), 9, np.uint8)).save(path)  # smaller than the cut, and grey
    assert data.Photos((path,), (3, 8, 8))[0].tolist() == np.full((3, 8, 8), 9).tolist()
    path.write_bytes(b"no image at all")
    with pytest.raises(CorruptError, match=r"a\.png is no image"):
        _ = data.Photos((path,), (3, 8, 8))[0]


def indexed(root: Path, labels: list[str], header: str = "file,label") -> Path:
    lines = [header]
    for i, label in reversed(list(enumerate(labels))):  # the order of the file does not matter
        photo(root / f"{i:03}.png", (9, 9), (i, 0, 0))
        lines.append(f"{i:03}.png,{label}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def test_an_index_holds_every_ninth_for_the_test(tmp_path: Path) -> None:
    found = load(f"imagefolder:{indexed(tmp_path, [str(100 + i) for i in range(40)])}", in_shape=(3, 8, 8))
    test = found.test()
    assert test.images[:][:, 0, 4, 4].tolist() == [8, 17, 26, 35]
    assert test.labels.tolist() == [108, 117, 126, 135]
    assert len(found.train) + len(found.validation) == 36
    assert found.classes == 140
    found.require_fit((3, 8, 8), 1000)  # of a thousand classes forty occur
    with pytest.raises(UsageError, match="140 classes, the model 100"):
        found.require_fit((3, 8, 8), 100)


def test_an_index_with_names(tmp_path: Path) -> None:
    found = load(f"imagefolder:{indexed(tmp_path, ['dog', 'cat'] * 9)}", in_shape=(3, 8, 8))
    assert (found.classes, found.labels) == (2, ("cat", "dog"))
    assert found.train.labels[:2].tolist() == [1, 0]
    with pytest.raises(UsageError, match="2 classes, the model 10"):
        found.require_fit((3, 8, 8), 10)


def test_an_index_that_is_wrong(tmp_path: Path) -> None:
    indexed(tmp_path, ["1"] * 12, header="name,class")
    with pytest.raises(UsageError, match="columns file and label"):
        load(f"imagefolder:{tmp_path}")
    indexed(tmp_path, ["1"] * 12)
    (tmp_path / "004.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 11 training images are missing, .*004\.png"):
        load(f"imagefolder:{tmp_path}")
    indexed(tmp_path, ["1"] * 5)
    with pytest.raises(UsageError, match="5 images are too few"):
        load(f"imagefolder:{tmp_path}")


def test_photographs_of_the_test_part_are_not_decoded_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(tmp_path, ["1"] * 20)
    seen: list[str] = []
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda path, size: (seen.append(path.name), decode(path, size))[1])
    found = load(f"imagefolder:{tmp_path}", in_shape=(3, 8, 8))
    assert seen == []
    _ = found.train.images[:], found.validation.images[:]
    assert {"008.png", "017.png"} & set(seen) == set()
    (tmp_path / "008.png").unlink()  # nobody notices until the test part is read
    load(f"imagefolder:{tmp_path}", in_shape=(3, 8, 8))


OWN = """
import numpy as np

class Set:
    def __init__(self, n, shape=(2, 3, 4), dtype="float32", opened=None):
        self.n, self.shape, self.dtype, self.opened = n, shape, dtype, opened

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if self.opened is not None:
            open(self.opened, "a").close()
        return np.full(self.shape, i, self.dtype), i % 3

def good():
    from pathlib import Path
    return Set(25), Set(6, opened=str(Path(__file__).with_name("opened")))

def doubles():
    return Set(25, dtype="float64"), Set(6)

def flat():
    return Set(25, shape=(9,)), Set(6)

def other_shape():
    return Set(25), Set(6, shape=(2, 3, 5))

def nan():
    class Bad(Set):
        def __getitem__(self, i):
            return np.full(self.shape, np.nan, np.float32), 0
    return Bad(3), Set(3)

def one():
    return Set(3)

def none():
    return Set(0), Set(3)

def fails():
    class Bad(Set):
        def __getitem__(self, i):
            raise OSError("disk on fire")
    return Bad(3), Set(3)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's file with data sets."""
    (tmp_path / "sets.py").write_text(OWN)
    return tmp_path / "sets.py"


def test_a_set_from_a_file(own: Path) -> None:
    found = load(f"{own}:good")
    assert (found.classes, found.shape, len(found.train), len(found.validation)) == (3, (2, 3, 4), 23, 2)
    assert found.validation.images[:, 0, 0, 0].tolist() == [9, 19]
    batch = found.train.images[:4]
    np.testing.assert_array_equal(found.normalise(batch, (0.5, 0.5), (2.0, 2.0)), batch)  # taken as normalised
    np.testing.assert_array_equal(found.augment(batch, np.random.default_rng(0)), batch)
    assert not own.with_name("opened").exists()
    assert found.test().labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert own.with_name("opened").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("doubles", r"item 0 of the training set is float64 \[2, 3, 4\]"),
        ("flat", r"float32 \[9\], expected float32 \[C, H, W\]"),
        ("one", "returns Set, not a training and a test set"),
        ("none", "training set is empty"),
        ("fails", "OSError: disk on fire"),
    ],
)
def test_a_set_that_is_wrong(own: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(f"{own}:{name}")


def test_a_set_with_numbers_that_are_none(own: Path) -> None:
    with pytest.raises(CorruptError, match=r"item 0 .* NaN"):
        load(f"{own}:nan")
    with pytest.raises(UsageError, match=r"images \[2, 3, 5\]"):
        load(f"{own}:other_shape").test()


def test_noise_for_calibration() -> None:
    found, again = load("random:5", in_shape=(3, 4, 4), seed=7), load("random:5", in_shape=(3, 4, 4), seed=7)
    assert found.train.images.shape == (5, 3, 4, 4)
    assert len(found.validation) == 0
    np.testing.assert_array_equal(found.train.images, again.train.images)
    assert not np.array_equal(found.train.images, load("random:5", in_shape=(3, 4, 4)).train.images)
    with pytest.raises(UsageError, match="no test part"):
        found.test()
    with pytest.raises(UsageError, match="needs the shape"):
        load("random:5")
    for bad in ("random:0", "random:x", "random:-1"):
        with pytest.raises(UsageError, match="N at least 1"):
            load(bad, in_shape=(3, 4, 4))


@pytest.mark.parametrize("spec", ["mnist", "digits:1", "cifar", ""])
def test_unknown_sets(spec: str) -> None:
    with pytest.raises(UsageError, match="known are digits, cifar10:DIR"):
        load(spec)


def accuracy(found: Data, spec: str, weights: Path) -> float:
    """Test top-1 in percent of a float network of the zoo."""
    torch = pytest.importorskip("torch", reason="the zoo needs torch: extra [search]")
    from bitpress.core.models import load as load_model

    torch.set_num_threads(1)
    loaded, test, right = load_model(spec, weights=weights), found.test(), 0
    with torch.no_grad():
        for i in range(0, len(test), 250):
            x = torch.from_numpy(found.normalise(test.images[i : i + 250], loaded.mean, loaded.std))
            right += int((loaded.module(x).argmax(1).numpy() == test.labels[i : i + 250]).sum())
    return 100 * right / len(test)


@pytest.mark.slow
def test_published_accuracy_on_real_images(real_data: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(real_data / "unpack"), str(tmp_path)], check=True, capture_output=True)
    hundred = load(f"cifar100:{tmp_path}")
    assert (len(hundred.train), len(hundred.validation)) == (45000, 5000)
    pixels = np.concatenate([hundred.train.images, hundred.validation.images]).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(pixels.mean(1) / 255, (0.507075, 0.486549, 0.440918), atol=5e-7)
    ten = load(f"cifar10:{tmp_path}")
    assert accuracy(ten, "resnet20", real_data / "weights" / "cifar10_resnet20.safetensors") == 91.73


@pytest.mark.parametrize(
    ("spec", "hint"), [("cifar10", "cifar10:DIR"), ("imagefolder:", "imagefolder:DIR"), ("random", "random:N")]
)
def test_data_without_its_folder_is_told_how_to_be_written(spec: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"data '{spec}': write {hint}"):
        load(spec)
