"""Photos at the door, and the .avatar file against hostile hands."""

import io
import json
import struct
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from visavis.avatar import create_avatar, load_avatar, resize_avatar
from visavis.errors import AvatarError, FaceError, ImageError, OutputError
from visavis.photo import read_photo

HEADS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF....WEBPVP8 ", b"II*\0", b"MM\0*", b""]


def encode(path, image, *options):
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image, list(options))
    return path


@pytest.fixture
def photo(demo_avatar):
    return demo_avatar.image


def rebuilt(path, out, **changes):
    """The archive with some members replaced (``None`` drops one)."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members |= changes
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return out


def test_create_save_load_round_trip(mesh, photo, tmp_path):
    avatar = create_avatar(photo, mesh=mesh, name="a", consent="test")
    again = load_avatar(avatar.save(tmp_path / "a.avatar"))
    np.testing.assert_array_equal(again.image, avatar.image)
    np.testing.assert_array_equal(again.matte, avatar.matte)
    np.testing.assert_allclose(again.points, avatar.points)
    np.testing.assert_allclose(again.rest.rotation, avatar.rest.rotation)
    assert again.meta == avatar.meta
    assert len(avatar.meta.source_sha256) == 64
    assert list(tmp_path.iterdir()) == [tmp_path / "a.avatar"], "no temporary file is left"


def test_matte_holds_the_face_and_not_the_corner(demo_avatar):
    x, y = demo_avatar.points[1, :2].astype(int)
    assert demo_avatar.matte[y, x] == 255
    assert demo_avatar.matte[2, -3] == 0


def test_resize_keeps_the_geometry(demo_avatar):
    half = resize_avatar(demo_avatar, 256)
    assert half.image.shape == (256, 256, 3)
    face = half.rest.apply(demo_avatar.rest.remove(demo_avatar.points.astype(float)))
    np.testing.assert_allclose(face[:, :2], half.points[:, :2], atol=1e-3)
    with pytest.raises(AvatarError):
        resize_avatar(demo_avatar, 64)


def test_photo_kinds_give_the_same_picture(photo, tmp_path):
    plain, _ = read_photo(encode(tmp_path / "a.png", photo))
    np.testing.assert_array_equal(plain, photo)
    wide = photo.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_photo(encode(tmp_path / "b.png", wide))[0], photo)
    alpha = np.dstack([photo[..., ::-1], np.full(photo.shape[:2], 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "c.png"), alpha)
    np.testing.assert_array_equal(read_photo(tmp_path / "c.png")[0], photo)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    assert read_photo(encode(tmp_path / "d.jpg", grey))[0].shape == photo.shape
    assert read_photo(encode(tmp_path / "e.webp", photo))[0].shape == photo.shape
    assert read_photo(encode(tmp_path / "f.bmp", photo))[0].shape == photo.shape
    assert read_photo(encode(tmp_path / "g.tiff", photo))[0].shape == photo.shape


def test_transparent_pixels_become_grey(photo, tmp_path):
    alpha = np.dstack([photo[..., ::-1], np.zeros(photo.shape[:2], np.uint8)])
    cv2.imwrite(str(tmp_path / "a.png"), alpha)
    assert (read_photo(tmp_path / "a.png")[0] == 128).all()


def exif_rotated(image, orientation):
    """JPEG bytes with an EXIF orientation tag."""
    jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    ifd = struct.pack("<H", 1) + struct.pack("<HHII", 0x0112, 3, 1, orientation) + b"\0" * 4
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + ifd
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_exif_rotation_is_applied(photo, tmp_path):
    turned = np.ascontiguousarray(np.rot90(photo))  # as a camera held sideways stores it
    (tmp_path / "a.jpg").write_bytes(exif_rotated(turned, 6))
    upright = read_photo(tmp_path / "a.jpg")[0]
    assert np.abs(upright.astype(int) - photo).mean() < 6


def test_cmyk_jpeg_is_read(photo, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    image_module.fromarray(photo).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_photo(tmp_path / "a.jpg")[0].astype(int) - photo).mean() < 12


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p, i: None, "no photo at"),
        (lambda p, i: p.write_bytes(b""), "is empty"),
        (lambda p, i: p.write_bytes(b"RIFFxxxxWAVE" + b"\0" * 100), "not a picture"),
        (lambda p, i: p.write_text("hello, this is no picture at all"), "not a picture"),
        (lambda p, i: p.write_bytes(cv2.imencode(".jpg", i)[1].tobytes()[:9000]), "cut off"),
        (
            lambda p, i: p.write_bytes(cv2.imencode(".png", i)[1].tobytes()[:4000]),
            "damaged|decoded",
        ),
        (
            lambda p, i: p.write_bytes(cv2.imencode(".png", i[:40, :40])[1].tobytes()),
            "at least 96 px",
        ),
    ],
)
def test_unusable_files_say_why(photo, tmp_path, make, reason):
    path = tmp_path / "photo.jpg"
    make(path, photo)
    with pytest.raises(ImageError, match=reason):
        read_photo(path)


def test_bombs_are_refused_from_the_header(tmp_path):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(ImageError, match="60000x60000"):
        read_photo(tmp_path / "a.png")


def test_faces_that_cannot_be_animated(mesh, photo, demo_avatar):
    with pytest.raises(FaceError, match="no face"):
        create_avatar(np.full((300, 300, 3), 90, np.uint8), mesh=mesh)
    with pytest.raises(FaceError, match="2 faces"):
        create_avatar(np.concatenate([photo, photo[:, ::-1]], axis=1), mesh=mesh)
    small = np.full((600, 600, 3), 200, np.uint8)
    small[200:328, 200:328] = cv2.resize(photo, (128, 128), interpolation=cv2.INTER_AREA)
    with pytest.raises(FaceError, match="px tall"):
        create_avatar(small, mesh=mesh)
    dark = photo.copy()
    eyes = demo_avatar.points[[127, 356, 6, 117, 346], :2].astype(int)
    x0, x1 = eyes[0, 0] + 6, eyes[1, 0] - 6
    middle, half = eyes[2, 1], (eyes[3, 1] - eyes[2, 1])
    cv2.rectangle(dark, (x0, middle - half), (x1, middle + half + 6), (12, 12, 14), -1)
    with pytest.raises(FaceError, match="dark glasses"):
        create_avatar(dark, mesh=mesh)
    with pytest.raises(AvatarError, match="expected 256 to 1024"):
        create_avatar(photo, size=4000, mesh=mesh)


def test_a_mask_hides_the_mouth(mesh, photo, demo_avatar):
    masked = photo.copy()
    rows = [234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288,
            361, 323, 454, 6]  # fmt: skip
    shape = demo_avatar.points[rows, :2].copy()
    shape[-1] = demo_avatar.points[5, :2]
    cv2.fillPoly(masked, [shape.astype(np.int32)], (70, 130, 190))
    with pytest.raises(FaceError):
        create_avatar(masked, mesh=mesh)


def test_profile_is_refused(mesh, shared_data):
    import glob

    from visavis.facemodel import fit_pose, load_face_model

    for path in sorted(glob.glob(str(shared_data / "sfhq" / "*.jpg")))[:40]:
        image, _ = read_photo(path)
        yaw = fit_pose(mesh.find(image)[0].points, load_face_model().template).angles[1]
        assert abs(yaw) < 60


def test_array_of_wrong_kind(mesh):
    with pytest.raises(ImageError, match="uint8"):
        create_avatar(np.zeros((300, 300, 3)), mesh=mesh)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(AvatarError, match="visavis create"):
        load_avatar(tmp_path / "no.avatar")
    (tmp_path / "a.avatar").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(AvatarError, match=r"not an \.avatar"):
        load_avatar(tmp_path / "a.avatar")


def test_members_missing_extra_or_outside(demo_avatar_path, tmp_path):
    with pytest.raises(AvatarError, match="lacks plate"):
        load_avatar(rebuilt(demo_avatar_path, tmp_path / "a.avatar", **{"plate.png": None}))
    # members with other names are never read, wherever they point
    load_avatar(rebuilt(demo_avatar_path, tmp_path / "b.avatar", **{"../../etc/passwd": b"x"}))
    assert not (tmp_path.parent / "etc").exists()


def test_zip_bomb(demo_avatar_path, tmp_path):
    path = tmp_path / "bomb.avatar"
    with zipfile.ZipFile(demo_avatar_path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members["image.png"] = b"\0" * (40 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 2 << 20
    with pytest.raises(AvatarError, match="too large"):
        load_avatar(path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 99, "version 99"),
        ("size", 100_000, "size 100000"),
        ("surprise", 1, "surprise"),
        ("name", 5, "name"),
    ],
)
def test_metadata_is_checked(demo_avatar_path, tmp_path, key, value, reason):
    with zipfile.ZipFile(demo_avatar_path) as archive:
        meta = json.loads(archive.read("avatar.json"))
    meta[key] = value
    path = rebuilt(
        demo_avatar_path, tmp_path / "a.avatar", **{"avatar.json": json.dumps(meta).encode()}
    )
    with pytest.raises(AvatarError, match=reason):
        load_avatar(path)


@pytest.mark.parametrize("name", ["points", "rotation", "scale", "neutral"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_numbers_are_checked(demo_avatar_path, tmp_path, name, value):
    with zipfile.ZipFile(demo_avatar_path) as archive:
        arrays = load(archive.read("geometry.safetensors"))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] = value
    path = rebuilt(
        demo_avatar_path, tmp_path / "a.avatar", **{"geometry.safetensors": save(arrays)}
    )
    with pytest.raises(AvatarError):
        load_avatar(path)


def test_huge_picture_inside_is_refused_from_its_header(demo_avatar_path, tmp_path):
    big = cv2.imencode(".png", np.zeros((4000, 4000), np.uint8))[1].tobytes()
    path = rebuilt(demo_avatar_path, tmp_path / "a.avatar", **{"matte.png": big})
    with pytest.raises(AvatarError, match="4000x4000"):
        load_avatar(path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_never_escape_as_another_error(demo_avatar_path, tmp_path, data):
    raw = bytearray(demo_avatar_path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 200))
    path = tmp_path / "a.avatar"
    path.write_bytes(bytes(raw[: len(raw) - cut]))
    try:
        load_avatar(path)
    except AvatarError:
        pass


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(head=st.sampled_from(HEADS), body=st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_an_image_error(tmp_path, head, body):
    path = tmp_path / "p.jpg"
    path.write_bytes(head + body)
    try:
        read_photo(path)
    except ImageError:
        pass


def test_unwritable_place(demo_avatar, tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        demo_avatar.save(tmp_path / "missing" / "a.avatar")


def test_saving_is_reproducible(demo_avatar, tmp_path):
    a, b = demo_avatar.save(tmp_path / "a.avatar"), demo_avatar.save(tmp_path / "b.avatar")
    assert a.read_bytes() == b.read_bytes()
    assert io.BytesIO(a.read_bytes()).read(2) == b"PK"
