from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import data


def _bytes(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def _write_npz(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    content: dict[str, object] = {
        "train_images": rng.integers(0, 256, (80, 3, 8, 8), dtype=np.uint8),
        "train_labels": np.arange(80) % 4,
        "test_images": rng.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8),
        "test_labels": np.arange(20) % 4,
    }
    content.update(changes)
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return path


def _fake_cifar(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (rows, 3072), dtype=np.uint8), np.arange(rows) % 10


def test_digits_come_in_four_disjoint_splits_of_all_ten_classes() -> None:
    digits = data.load("digits")
    splits = [
        (digits.train_images, digits.train_labels),
        (digits.selection_images, digits.selection_labels),
        (digits.calibration_images, digits.calibration_labels),
        (digits.test_images, digits.test_labels),
    ]
    assert sum(len(labels) for _, labels in splits) == 1797
    assert len(set.union(*(_bytes(images) for images, _ in splits))) == sum(
        len(_bytes(images)) for images, _ in splits
    )
    for images, labels in splits:
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 3, 32, 32)
        assert set(labels) == set(range(10))
    assert np.array_equal(digits.train_images[:, 0], digits.train_images[:, 2])
    assert digits.train_images.max() == 255


def test_the_seed_alone_decides_the_splits() -> None:
    first, again, other = data.load("digits", 3), data.load("digits", 3), data.load("digits", 4)
    assert np.array_equal(first.selection_images, again.selection_images)
    assert not np.array_equal(first.selection_images, other.selection_images)


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    digits = data.load("digits")
    scaled = digits.train_images.astype(np.float64) / 255
    assert np.allclose(digits.mean, scaled.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(digits.std, scaled.std((0, 2, 3)), atol=1e-4)


def test_an_npz_is_read_and_channels_come_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    path = _write_npz(tmp_path / "own.npz", train_images=images, classes=list("abcd"))
    dataset = data.load(path)
    assert dataset.classes == ("a", "b", "c", "d")
    assert dataset.train_images.shape == (60, 3, 8, 8)
    assert _bytes(dataset.train_images) < _bytes(images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_labels": None}, "train_labels is missing"),
        ({"train_labels": np.arange(70) % 4}, "80 images and 70 labels"),
        ({"test_labels": np.full(20, 9)}, "has a label 9, but there are only 4 classes"),
        ({"test_labels": np.full(20, -1)}, "the test split has a label -1"),
        ({"train_labels": np.full(80, -2)}, "the train split has a label -2"),
        ({"train_images": np.zeros((80, 3, 8, 8))}, "must hold uint8 images"),
        ({"train_images": np.zeros((0, 3, 8, 8), np.uint8), "train_labels": np.zeros(0, int)},
         "has 0 images"),
        ({"train_labels": np.linspace(0, 1, 80)}, "one whole number as label"),
        ({"train_labels": np.array([{}] * 80)}, r"not a readable \.npz|Object arrays"),
    ],
)  # fmt: skip
def test_a_faulty_npz_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    path = _write_npz(tmp_path / "own.npz", **changes)
    with pytest.raises(ValueError, match=sentence):
        data.load(path)


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = _write_npz(tmp_path / "own.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        data.load(path)


def test_an_empty_folder_is_refused_with_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder is empty"):
        data.load(tmp_path)


def test_a_folder_of_something_else_and_a_name_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(ValueError, match="no CIFAR-10 in this folder"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="no such dataset"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="not a dataset"):
        data.load(tmp_path / "holiday.txt")


def test_python_and_binary_batches_give_the_same_images(tmp_path: Path) -> None:
    python, binary = tmp_path / "python", tmp_path / "binary"
    python.mkdir()
    binary.mkdir()
    pixels, labels = _fake_cifar()
    for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        content = {b"data": pixels, b"labels": labels.tolist()}
        (python / name).write_bytes(pickle.dumps(content, protocol=2))
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (binary / f"{name}.bin").write_bytes(rows.tobytes())
    first, second = data.load(python), data.load(binary)
    assert np.array_equal(first.train_images, second.train_images)
    assert np.array_equal(first.test_images.reshape(40, -1), pixels)
    assert np.array_equal(second.test_labels, labels)
    (python / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3: this batch is missing"):
        data.load(python)


def test_a_batch_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "touched",))  # type: ignore[return-value]

    for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match="which no image needs"):
        data.load(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_webp_sheets_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_00.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"labels\.npz is missing"):
        data.load(tmp_path)


def test_webp_sheets_are_cut_into_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (800, 1280, 3), dtype=np.uint8)
    for split in ("train", "test"):
        image.fromarray(pixels).save(tmp_path / f"{split}_00.webp", lossless=True)
    labels = np.arange(1000) % 10
    np.savez(tmp_path / "labels.npz", train_labels=labels, test_labels=labels)
    dataset = data.load(tmp_path)
    third_row_second = pixels[64:96, 32:64].transpose(2, 0, 1)
    assert np.array_equal(dataset.test_images[2 * 40 + 1], third_row_second)


def _draw(path: Path, value: int, width: int = 24, height: int = 16) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    margin = (width - height) // 2
    pixels[:, margin : margin + height] = value  # the middle square
    image.fromarray(pixels).save(path)


def test_a_folder_of_pictures_has_a_class_for_each_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("apple", "pear")):
        for index in range(24):
            _draw(tmp_path / "train" / name / f"{index}.png", 10 * number + index)
        for index in range(8):
            _draw(tmp_path / "test" / name / f"{index}.bmp", 100 + 10 * number)
    (tmp_path / "train" / "apple" / "notes.txt").write_text("not a picture")
    found = data.load(tmp_path, size=8)
    assert found.classes == ("apple", "pear")
    assert found.test_images.shape == (16, 3, 8, 8)
    assert set(found.test_images[:8, :, :, 1:-1].flat) == {100}, "the middle alone"
    assert list(found.test_labels) == [0] * 8 + [1] * 8
    assert (
        len(found.train_labels) + len(found.selection_labels) + len(found.calibration_labels) == 48
    )
    _draw(tmp_path / "test" / "plum" / "0.png", 1)
    with pytest.raises(ValueError, match="the class plum is not in"):
        data.load(tmp_path, size=8)


def test_without_a_test_folder_a_fifth_of_each_class_is_the_test(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(50):
            _draw(tmp_path / name / f"{index}.png", index, width=16)
    found, again = data.load(tmp_path, seed=1), data.load(tmp_path, seed=1)
    assert np.bincount(found.test_labels).tolist() == [10, 10]
    assert np.array_equal(found.test_images, again.test_images)
    assert not _bytes(found.test_images[:10]) & _bytes(found.train_images[found.train_labels == 0])


def test_pictures_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(50):
        _draw(tmp_path / "a" / f"{index:02}.png", index, width=16)
    _draw(tmp_path / "a" / "50.png", 0, width=18)
    with pytest.raises(ValueError, match=r"50\.png: has 18x16 pixels and others 16x16"):
        data.load(tmp_path)
    (tmp_path / "a" / "50.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"50\.png: cannot be read as a picture"):
        data.load(tmp_path)
    monkeypatch.setattr("engine.pictures.LIMIT", 1000)
    with pytest.raises(ValueError, match="51 images of 224x224 pixels take more than"):
        data.load(tmp_path, size=224)


def test_augmentation_shifts_and_mirrors_and_repeats_with_its_generator() -> None:
    images = torch.arange(64 * 3 * 8 * 8).reshape(64, 3, 8, 8).remainder(251).to(torch.uint8) + 1
    first = data.augment(images, torch.Generator().manual_seed(1), padding=2)
    again = data.augment(images, torch.Generator().manual_seed(1), padding=2)
    assert torch.equal(first, again)
    assert first.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (2,) * 4)
    mirrored = 0
    for before, after in zip(padded, first, strict=True):
        windows = [before[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        plain = any(torch.equal(after, window) for window in windows)
        flipped = any(torch.equal(after, window.flip(2)) for window in windows)
        assert plain or flipped
        mirrored += flipped
    assert 10 < mirrored < 54
    upright = data.augment(images, torch.Generator().manual_seed(1), padding=0, flip=False)
    assert torch.equal(upright, images)
