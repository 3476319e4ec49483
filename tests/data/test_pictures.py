"""Image files of every kind: converted by their range or refused by name, never read wrongly."""

import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from protocl.data import BenchmarkConfig, load_data
from protocl.data.pictures import pixels_of, read_picture
from protocl.errors import DataError

SIDE = 8
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
FORMATS = ("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm")
EIGHT_BITS = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
# What each format can hold, found by trying; Pillow saves other modes by changing them first.
HELD = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"),
    "jpg": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "gif": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "tiff": (*EIGHT_BITS[:-1], "1", "P", "PA", "LAB", "I", *SIXTEEN_BITS, "F"),
    "webp": (*EIGHT_BITS, "1", "P", "PA"),
    "ppm": ("1", "L", "RGB", "RGBA", "I;16", "F"),
}


def ramp(mode: str) -> Image.Image:
    """Grey from black to white in this mode, over its whole range."""
    if mode in SIXTEEN_BITS:
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, (SIDE, SIDE), (RAMP * 65535).astype(order).tobytes())
    if mode == "I":
        return Image.fromarray((RAMP * 65535).astype(np.int32))
    if mode == "F":
        return Image.fromarray(RAMP.astype(np.float32))
    if mode == "LAB":
        lightness = (RAMP * 255).astype(np.uint8)
        neutral = np.zeros_like(lightness)
        return Image.frombytes(
            "LAB", (SIDE, SIDE), np.stack([lightness, neutral, neutral], -1).tobytes()
        )
    grey = Image.fromarray((RAMP * 255).astype(np.uint8))
    return grey.convert("P").convert("PA") if mode == "PA" else grey.convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in HELD.items() for mode in modes]
)
def test_every_mode_in_every_format_keeps_its_range_or_is_refused_by_name(
    kind: str, mode: str, tmp_path: Path
) -> None:
    file = tmp_path / f"a.{kind}"
    ramp(mode).save(file)
    if mode == "I":
        with pytest.raises(DataError, match=r"a\.tiff holds 32-bit integers \(Pillow's mode I\)"):
            read_picture(file)
        return
    pixels = np.asarray(read_picture(file))
    assert pixels.shape == (SIDE, SIDE, 3)
    if mode in ("1", "P", "PA", "LAB"):  # few levels, or not linear, the extremes among them
        assert pixels.min() < 16
        assert pixels.max() > 239
        assert pixels[0, 0].max() < pixels[-1, -1].min()
        return
    error = np.abs(pixels.mean(-1) - RAMP * 255)
    # Lossy formats, and GIF's palette of colours with transparency, are off by a few levels.
    assert error.max() <= (26 if (kind, mode) == ("gif", "RGBA") else 6)


@pytest.mark.parametrize("mode", SIXTEEN_BITS)
def test_sixteen_bits_are_scaled_not_cut(mode: str, tmp_path: Path) -> None:
    ramp(mode).save(tmp_path / "a.tiff")
    pixels = np.asarray(read_picture(tmp_path / "a.tiff"))
    expected = ((RAMP * 65535).astype(np.uint16) / 257).round()
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, -1))


def test_floating_point_outside_of_the_unit_interval_is_refused(tmp_path: Path) -> None:
    for values in (RAMP * 200, RAMP - 0.5, np.full_like(RAMP, np.nan)):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
        with pytest.raises(DataError, match=r"a\.tiff .*mode F.* expected them in \[0, 1\]"):
            read_picture(tmp_path / "a.tiff")


def complaint(file: Path) -> str | None:
    """What is said of a file, or None if it is read."""
    try:
        read_picture(file)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_of_every_format_are_named(kind: str, tmp_path: Path) -> None:
    """Cut anywhere or with a flipped bit: read, or refused as data; never anything else."""
    file = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    whole, draw = file.read_bytes(), random.Random(0)
    cuts = [whole[: draw.randrange(len(whole) - 32)] for _ in range(40)]
    flips = []
    for _ in range(160):
        content = bytearray(whole)
        content[draw.randrange(min(len(whole), 120))] ^= 1 << draw.randrange(8)
        flips.append(bytes(content))
    refused = 0
    for content in [*cuts, *flips]:
        file.write_bytes(content)
        message = complaint(file)
        assert message is None or str(file) in message
        refused += message is not None
    assert refused >= len(cuts)


def bomb(kind: str) -> bytes:
    """A header that announces 60,000 x 60,000 pixels."""
    side = 60_000
    if kind == "bmp":
        header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54 + 99, 0, 0, 54) + header + bytes(99)
    if kind == "ppm":
        return f"P6\n{side} {side}\n255\n".encode() + bytes(99)
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 99) + b"IDAT" + bytes(99)


@pytest.mark.parametrize("kind", ["bmp", "ppm", "png"])
def test_a_header_that_announces_too_much_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{kind}").write_bytes(bomb(kind))
    with pytest.raises(DataError, match=rf"a\.{kind} cannot be read as an image: .*pixels"):
        read_picture(tmp_path / f"a.{kind}")


def fill(root: Path, classes: list[str], ending: str = "png") -> BenchmarkConfig:
    """An image folder with one image of a colour of its own for each class and part."""
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            colour = (40 * number, 255 - 40 * number, 7)
            Image.new("RGB", (4, 4), colour).save(root / part / name / f"1.{ending}")
    return BenchmarkConfig(name="image_folder", path=str(root))


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    config = fill(tmp_path, ["cat", "dog"])
    image = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    for folder in (".ipynb_checkpoints", "__MACOSX", ".git"):
        for parent in (tmp_path / "train", tmp_path / "train" / "cat"):
            (parent / folder).mkdir()
            (parent / folder / "1.png").write_bytes(image)
    for name in ("Thumbs.db", ".DS_Store", "._1.png", "desktop.ini"):
        (tmp_path / "train" / "dog" / name).write_bytes(b"\0")
    data = load_data(config)
    assert data.class_names == ["cat", "dog"]
    assert data.y_train.tolist() == [0, 1]


def test_files_that_are_no_images_are_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fill(tmp_path, ["cat"])
    (tmp_path / "train" / "cat" / "photo.heic").write_bytes(b"x")
    assert len(load_data(config).x_train) == 1
    assert "passed over 1 files" in caplog.text
    assert "photo.heic" in caplog.text


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    config = fill(tmp_path, ["cat", "dog"])
    (tmp_path / "train" / "cat" / "tabby").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "cat" / "tabby" / "2.GIF")
    assert load_data(config).y_train.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_found(kind: str, tmp_path: Path) -> None:
    data = load_data(fill(tmp_path, ["a", "b"], kind))
    assert data.x_train.shape == (2, 3, 4, 4)
    assert (data.x_train[0, 1].float() - 255).abs().max() <= 3


NAMES = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/."), min_size=1,
            max_size=12).map(lambda name: name.strip() or "_"),
    min_size=1, max_size=5, unique_by=lambda name: name.casefold(),
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=NAMES)
def test_classes_may_have_any_names(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Unicode, spaces, numbers: ids follow the sorted names, and names are kept as they are."""
    data = load_data(fill(tmp_path_factory.mktemp("folder"), names))
    assert data.class_names == sorted(names)
    order = torch.tensor([names.index(name) for name in data.class_names])
    assert torch.equal(data.x_train[:, 0, 0, 0], (40 * order).to(torch.uint8))
    assert torch.equal(data.x_train, data.x_test)


@pytest.mark.parametrize("bits", [10, 12, 13, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_data_set_of_few_bits_in_sixteen_is_said_to_be_dark(
    bits: int, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            values = random.integers(0, 2**bits, (8, 8), dtype=np.uint16)
            values[0, :2] = 0, 2**bits - 1
            Image.frombytes("I;16", (8, 8), values.tobytes()).save(folder / f"x.{kind}")
    data = load_data(BenchmarkConfig(name="image_folder", path=str(tmp_path)))
    assert int(data.x_train.max()) == round((2**bits - 1) / 257)
    dark = [record.message for record in caplog.records if "must be multiplied" in record.message]
    assert len(dark) == (2 if bits <= 12 else 0)
    for message, part in zip(dark, ("train", "test"), strict=False):
        assert f"{tmp_path / part}: no pixel of any image is brighter than" in message


def test_a_dark_picture_among_others_and_black_ones_are_no_dark_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part, values in (("train", (9, 200)), ("test", (0, 0))):
        for name, value in zip("ab", values, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), value).save(tmp_path / part / name / "x.png")
    load_data(BenchmarkConfig(name="image_folder", path=str(tmp_path)))
    assert "multiplied" not in caplog.text


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_pixels_are_those_of_torchvision(
    width: int, height: int, tall: int, wide: int, channels: int
) -> None:
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    scale = max(tall / height, wide / width)
    covering = [max(tall, int(height * scale + 1e-9)), max(wide, int(width * scale + 1e-9))]
    expected = picture.convert("L") if channels == 1 else picture
    if (height, width) != (tall, wide):
        expected = center_crop(resize(expected, covering), [tall, wide])
    found = pixels_of(picture, (tall, wide), channels)
    assert torch.equal(found, pil_to_tensor(expected))
    assert torch.equal(
        pixels_of(picture, None, channels).float(),
        pil_to_tensor(picture.convert("L") if channels == 1 else picture).float(),
    )
