"""Image files of many sizes as arrays of one: in memory, and in a file that is filled once and goes on where it was."""

from pathlib import Path

import numpy as np
import pytest
from data_layouts import write_image
from PIL import Image

from experts.data.dataset import ImageDataset
from experts.data.image_files import (
    FileList,
    ReadingConfig,
    ReadingProgress,
    images_below,
    read_files,
    square_image,
)
from experts.errors import MalformedDataset, SettingOutOfRange, TooLargeForMemory


def folder_of(path: Path, counts: dict[str, int]) -> Path:
    """Images of shades 0, 1, 2, ... in the order of classes and files."""
    shade = 0
    for name, count in sorted(counts.items()):
        for number in range(count):
            write_image(path / name / f"{number}.png", shade, size=(5 + shade, 9))
            shade += 1
    return path


def shades(images: ImageDataset) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images]


def test_the_middle_square_remains_and_is_averaged_down(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, :4], wide[:, 4:6], wide[:, 6:8], wide[:, 8:] = 255, 100, 50, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    small = square_image(tmp_path / "wide.png", 4)
    assert small.shape == (4, 4, 3)
    assert small[0, :, 0].tolist() == [100, 100, 50, 50]
    assert np.array_equal(square_image(tmp_path / "tall.png", 4), small.transpose(1, 0, 2))
    assert square_image(tmp_path / "wide.png", 9).shape == (9, 9, 3)


def test_a_square_is_what_is_cut_out_of_the_whole_resized(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "p.png")
    resized = np.asarray(picture.resize((15, 5), Image.Resampling.BILINEAR), np.int64)
    assert np.abs(square_image(tmp_path / "p.png", 5).astype(np.int64) - resized[:, 5:10]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("RGBA", "png"), ("L", "jpg"), ("CMYK", "jpg")]
)
def test_every_kind_of_picture_becomes_colour(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    image = square_image(path, 4)
    assert image.shape == (4, 4, 3)
    assert (image > 250).all()


def test_a_large_jpeg_looks_as_if_it_were_decoded_whole(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (512, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "p.jpg", quality=95)
    with Image.open(tmp_path / "p.jpg") as whole:
        expected = np.asarray(whole.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR), np.int64)
    assert np.abs(square_image(tmp_path / "p.jpg", 16).astype(np.int64) - expected).max() <= 2


def test_classes_are_folders_and_files_that_are_no_images_are_left_alone(tmp_path: Path) -> None:
    folder_of(tmp_path, {"b": 1, "a": 2})
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "list.txt").write_text("x")
    files = images_below("x", tmp_path)
    assert (files.paths, files.labels) == (("a/0.png", "a/1.png", "b/0.png"), ("a", "a", "b"))


@pytest.mark.parametrize("cached", [False, True])
def test_images_come_in_the_order_of_the_list(tmp_path: Path, cached: bool) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 2, "b": 3}))
    images = read_files(files, ReadingConfig(pixels=4, cache=tmp_path / "cache" if cached else None))
    assert (shades(images), images.labels) == ([0, 1, 2, 3, 4], files.labels)
    assert images.images.shape == (5, 4, 4, 3)
    assert isinstance(images.images, np.memmap) is cached
    turned = read_files(files.select([4, 0]), ReadingConfig(pixels=4, cache=tmp_path / "cache" if cached else None))
    assert shades(turned) == [4, 0]


def test_a_limit_keeps_the_first_images_of_each_class(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path, {"a": 3, "b": 1, "c": 2}))
    limited = read_files(files, ReadingConfig(pixels=4, images_per_class=2))
    assert shades(limited) == [0, 1, 3, 4, 5]


def test_files_are_split_as_the_images_would_be(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path, {"a": 10, "b": 5}))
    kept, held_out = files.split(0.2, seed=0)
    whole = read_files(files, ReadingConfig(pixels=4))
    for part, same in zip((kept, held_out), whole.split(0.2, seed=0), strict=True):
        assert shades(read_files(part, ReadingConfig(pixels=4))) == shades(same)
    assert len(held_out.paths) == 3


@pytest.mark.parametrize("content", [b"", b"not an image", None])
@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_or_missing_image_is_named(tmp_path: Path, content: bytes | None, cached: bool) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 3}))
    bad = tmp_path / "images" / "a" / "1.png"
    bad.unlink()
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(MalformedDataset) as caught:
        read_files(files, ReadingConfig(pixels=4, cache=tmp_path / "cache" if cached else None))
    assert caught.value.source == str(bad)


def test_every_truncation_of_an_image_is_named(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for suffix in ("jpg", "png"):
        path = tmp_path / f"p.{suffix}"
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
        whole = path.read_bytes()
        for cut in range(0, len(whole) // 2, 7):
            path.write_bytes(whole[:cut])
            with pytest.raises(MalformedDataset):
                square_image(path, 4)


def test_an_image_that_would_unpack_to_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "p.png", 3, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MalformedDataset, match="bomb"):
        square_image(tmp_path / "p.png", 4)


def test_too_many_images_for_memory_are_refused_before_any_is_read(tmp_path: Path) -> None:
    files = FileList("x", tmp_path, ("none.png",) * 100, ("a",) * 100)
    with pytest.raises(TooLargeForMemory, match="cache folder") as caught:
        read_files(files, ReadingConfig(pixels=10, max_memory_bytes=29_999))
    assert (caught.value.images, caught.value.needed_bytes) == (100, 30_000)


def test_what_a_cache_holds_is_not_read_again(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 2, "b": 2}))
    reports: list[ReadingProgress] = []
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache", on_progress=reports.append)
    first = read_files(files, reading)
    assert [(report.done, report.total, report.source) for report in reports] == [(4, 4, "x")]
    again = read_files(files, reading)
    assert len(reports) == 1
    assert np.array_equal(again.images, first.images)
    # What somebody does to the images in memory is nobody else's.
    again.images[:] = 9
    assert shades(read_files(files, reading)) == [0, 1, 2, 3]


def test_reading_goes_on_where_a_damaged_image_stopped_it(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 4}))
    bad = tmp_path / "images" / "a" / "2.png"
    bad.write_bytes(b"damaged")
    reports: list[ReadingProgress] = []
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache", on_progress=reports.append)
    with pytest.raises(MalformedDataset):
        read_files(files, reading)
    write_image(bad, 77)
    assert shades(read_files(files, reading)) == [0, 1, 77, 3]
    assert [report.done for report in reports] == [2]


def test_reading_goes_on_without_a_damaged_image_that_was_removed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", {"a": 4})
    (folder / "a" / "2.png").write_bytes(b"damaged")
    reports: list[ReadingProgress] = []
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache", on_progress=reports.append)
    with pytest.raises(MalformedDataset):
        read_files(images_below("x", folder), reading)
    (folder / "a" / "2.png").unlink()
    assert shades(read_files(images_below("x", folder), reading)) == [0, 1, 3]
    assert [report.done for report in reports] == [1]


@pytest.mark.parametrize("torn", [".images.partial", ".images.stamps.partial"])
@pytest.mark.parametrize("missing_bytes", [1, 48, 49, 96])
def test_reading_goes_on_from_a_write_that_was_torn(tmp_path: Path, torn: str, missing_bytes: int) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 4}))
    bad = tmp_path / "images" / "a" / "3.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"damaged")
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache")
    with pytest.raises(MalformedDataset):
        read_files(files, reading)
    (partial,) = (path for path in (tmp_path / "cache").iterdir() if path.name.endswith(torn))
    partial.write_bytes(partial.read_bytes()[:-missing_bytes])
    bad.write_bytes(whole)
    assert shades(read_files(files, reading)) == [0, 1, 2, 3]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images", {"a": 3})
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache")
    old = read_files(images_below("x", folder), reading)
    write_image(folder / "a" / "1.png", 99, size=(30, 30))
    assert shades(read_files(images_below("x", folder), reading)) == [0, 99, 2]
    # Who still uses the old ones keeps them.
    assert shades(old) == [0, 1, 2]
    write_image(folder / "a" / "3.png", 50)
    assert shades(read_files(images_below("x", folder), reading)) == [0, 99, 2, 50]


def test_caches_of_other_sizes_and_limits_are_kept_apart(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 3}))
    for pixels, limit in ((4, None), (4, 2), (5, None), (4, None)):
        images = read_files(files, ReadingConfig(pixels=pixels, images_per_class=limit, cache=tmp_path / "cache"))
        assert images.images.shape == (limit or 3, pixels, pixels, 3)
        assert shades(images) == [0, 1, 2][:limit]


def test_a_cache_cut_short_is_filled_again(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 3}))
    reading = ReadingConfig(pixels=4, cache=tmp_path / "cache")
    read_files(files, reading)
    (kept,) = (tmp_path / "cache").glob("*.images")
    kept.write_bytes(kept.read_bytes()[:-5])
    assert shades(read_files(files, reading)) == [0, 1, 2]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 1}))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MalformedDataset, match="the cache cannot be written"):
        read_files(files, ReadingConfig(pixels=4, cache=tmp_path / "file"))


def test_parts_of_images_on_disk_stay_on_disk(tmp_path: Path) -> None:
    files = images_below("x", folder_of(tmp_path / "images", {"a": 3, "b": 3, "c": 3}))
    images = read_files(files, ReadingConfig(pixels=4, cache=tmp_path / "cache"))
    together = images.of_classes(["b", "c"])
    apart = images.of_classes(["c", "a"])
    assert shades(together) == [3, 4, 5, 6, 7, 8]
    assert np.shares_memory(together.images, images.images)
    assert shades(apart) == [0, 1, 2, 6, 7, 8]
    assert shades(apart.select([5, -6, 0])) == [8, 0, 0]
    for part in (together, apart, apart.select([5, 0])):
        assert isinstance(part.images, np.memmap)
        assert part.images.base is not None
    left = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert left == [".images", ".lock", ".stamps"]
    for rows in ([9], [0, 9], [-10]):
        with pytest.raises(IndexError):
            images.select(rows)
    assert len(images.select([])) == 0


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedDataset, match="cannot be read"):
        images_below("x", tmp_path / "none")
    with pytest.raises(MalformedDataset, match="no folder of a class"):
        images_below("x", tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(MalformedDataset, match="no image file") as caught:
        images_below("x", tmp_path)
    assert caught.value.source == str(tmp_path / "a")
    with pytest.raises(MalformedDataset, match="has no image"):
        read_files(FileList("x", tmp_path, (), ()), ReadingConfig())


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"pixels": 0}, {"images_per_class": 0}):
        with pytest.raises(SettingOutOfRange):
            ReadingConfig(**wrong)  # type: ignore[arg-type]
