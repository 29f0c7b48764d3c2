"""Data: what is loaded, what is refused and in which words, and that it is decoded only once."""

import contextlib
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from in_process import settings_of, trainer_of
from PIL import Image

import load_data
from load_data import load_cifar_2d, load_cifar_4d, normalize
from store import cache, image_folder
from store import official as official_files
from store.cache import CACHE, LOCK
from store.files import ROOT, UserError, lock
from store.official import ARCHIVE, BATCHES, PART
from store.synthetic import shapes as synthetic_shapes

PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(load_data.__file__).parent)!r})
import load_data
print(load_data.load_cifar_4d(sys.argv[1]).fingerprint, "torchvision" in sys.modules)
"""


def picture(path, size=(32, 32), mode="RGB", seed=0):
    width, height = size
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """An image folder: three classes, 20 pictures each to train and 4 each to test."""
    seed = 0
    for split, count in (("train", 20), ("test", 4)):
        for name in ("dog", "ant", "cat"):
            for i in range(count):
                picture(tmp_path / "images" / split / name / f"{i:02}.png", seed=(seed := seed + 1))
    return tmp_path / "images"


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load_cifar_4d(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(a, b):
    assert a[3:] == b[3:]
    for x, y in zip(a[:3], b[:3], strict=True):
        assert torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels)


# Pixels


def test_normalize_is_the_formula_for_every_byte():
    x = torch.arange(256, dtype=torch.uint8)
    y = normalize(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, (x.float() - 128) / 255)
    floats = x.float()
    assert torch.equal(normalize(floats), y)
    assert torch.equal(floats, x.float()), "the input stays as it was"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_normalize_gives_the_same_bits_on_a_gpu():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(normalize(x.cuda()).cpu(), normalize(x))


def test_vectors_are_the_images_flattened(folder):
    flat, images = load_cifar_2d(folder), load_cifar_4d(folder)
    assert flat.train.images.shape == (48, 3072) and flat.train.images.dtype == torch.uint8
    for vectors, pictures in zip(flat[:3], images[:3], strict=True):
        assert torch.equal(vectors.images.view(-1, 3, 32, 32), pictures.images)
        assert torch.equal(vectors.labels, pictures.labels)


# An image folder


def test_an_image_folder_is_read_as_torchvision_reads_it(folder):
    from torchvision.datasets import ImageFolder

    picture(folder / "train" / "cat" / "more" / "a.png", seed=1000)
    picture(folder / "train" / "cat" / "gray.PNG", mode="L", seed=1001)
    (folder / "train" / "cat" / "notes.txt").write_text("not a picture")
    data = load_cifar_4d(folder)
    assert data.classes == ("ant", "cat", "dog") and data.source == "image folder"
    for split, names in (("train", ("train", "val")), ("test", ("test",))):
        expected = sorted((label, np.asarray(image).transpose(2, 0, 1).tobytes())
                          for image, label in ImageFolder(folder / split))
        parts = [getattr(data, name) for name in names]
        assert expected == sorted((label.item(), image.numpy().tobytes()) for part in parts
                                  for image, label in zip(part.images, part.labels, strict=True))
    for split in data[:3]:
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.is_contiguous()


def test_a_fifth_of_a_fixed_permutation_validates(folder, monkeypatch):
    data = load_cifar_4d(folder)
    assert [len(split.labels) for split in data[:3]] == [48, 12, 12]
    assert len(set(data.val.labels.tolist())) == 3, "on disk the last fifth is of one class"
    (folder / CACHE).unlink()
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *at, **how: (  # as another file system lists it
        (place, sorted(folders, reverse=True), names[::-1])
        for place, folders, names in walk(*at, **how)))
    same(data, load_cifar_4d(folder))


def test_the_fingerprint_follows_pixels_and_class_names(folder):
    first = load_cifar_4d(folder).fingerprint
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "elk")
    renamed = load_cifar_4d(folder).fingerprint
    picture(folder / "test" / "elk" / "00.png", seed=999)
    assert len({first, renamed, load_cifar_4d(folder).fingerprint}) == 3


@pytest.mark.parametrize("damage, words", [
    (lambda f: shutil.rmtree(f / "test"), "has no folder test/"),
    (lambda f: shutil.rmtree(f / "train"), "has no folder train/"),
    (lambda f: shutil.rmtree(f / "test" / "ant"), "test/ of {} need the same class folders; in only one of them: 'ant'"),
    (lambda f: [shutil.rmtree(p) for p in f.glob("*/*")], "train has no class folders"),
    (lambda f: [p.unlink() for p in f.glob("train/cat/*")], "train/cat has no pictures"),
    (lambda f: [p.unlink() for p in f.glob("test/cat/*")], "test/cat has no pictures"),
    (lambda f: [p.unlink() for p in f.glob("train/*/*") if p.name != "00.png"],
     "fewer than 5 pictures"),
    (lambda f: (f / "train" / "cat" / "07.png").write_bytes(b""), "cat/07.png cannot be read"),
    (lambda f: Image.new("RGB", (32, 32)).save(f / "train" / "cat" / "07.png", "EPS"),
     "train/cat/07.png cannot be read as a picture (it is in no format"),
    (lambda f: (f / "train" / "cat" / "07.png").write_bytes(bytes(2**20 + 1)),
     "at most 1048576 bytes"),
    (lambda f: picture(f / "test" / "dog" / "x.png", (33, 32)),
     "test/dog/x.png cannot be read as a picture (it has 33x32 pixels"),
    (lambda f: picture(f / "test" / "dog" / "x.png", (32, 31)),
     "test/dog/x.png cannot be read as a picture (it has 32x31 pixels"),
    (lambda f: ((f / "test" / "dog" / "00.png").unlink(), os.mkfifo(f / "test" / "dog" / "00.png")),
     "test/dog/00.png is not a file"),
    (lambda f: (shutil.rmtree(f), f.write_text("x")), "is not a folder"),
])
def test_a_damaged_folder_is_refused_in_one_line(folder, damage, words):
    damage(folder)
    assert words.format(folder) in refusal(folder)


def test_a_picture_of_gigabytes_is_refused_by_its_header(folder):
    def chunk(kind, body):
        sum_of_it = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sum_of_it

    for side, words in ((12_000, "has 12000x12000 pixels"), (60_000, "exceeds limit")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        content = chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
        bomb = b"\x89PNG\r\n\x1a\n" + header + content
        (folder / "train" / "ant" / "07.png").write_bytes(bomb)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = refusal(folder)
        assert "train/ant/07.png" in message and words in message


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".x", "lost+found"])
def test_what_nobody_put_there_is_skipped_and_counted(folder, name, capsys):
    before = load_cifar_4d(folder)
    for place in (f"train/{name}", f"train/cat/{name}", f"test/dog/{name}/deeper"):
        picture(folder / place / "00.png")
    picture(folder / "test" / "dog" / "._03.png")
    for place in ("train/Thumbs.db", "train/dog/Thumbs.db", "train/dog/.DS_Store"):
        (folder / place).write_bytes(b"no picture")
    (folder / CACHE).unlink()
    capsys.readouterr()
    same(before, load_cifar_4d(folder))
    said = capsys.readouterr().err
    assert "skipping what is hidden, the system's or not .jpg" in said
    assert f".webp: 7, such as {folder}/" in said and "at least" not in said
    same(before, load_cifar_4d(folder))
    assert capsys.readouterr().err == ""


def test_pictures_of_other_kinds_are_counted_and_a_class_that_loses_half_named(folder, capsys):
    for i in range(20):
        (folder / "train" / "cat" / f"{i}.avif").write_bytes(b"x")
    for name in ("train/dog/1.gif", "train/2.png", "train/dog/notes.txt", "test/ant/a.jp2"):
        (folder / name).write_bytes(b"x")
    load_cifar_4d(folder)
    said = capsys.readouterr().err
    assert ": 24, such as" in said and "; at least half of train/cat\n" in said


@pytest.mark.parametrize("name", ["valid", "val", "Validation"])
def test_a_validation_set_of_the_users_is_named_each_time(folder, name, capsys):
    before = load_cifar_4d(folder)
    assert "not used" not in capsys.readouterr().err
    picture(folder / name / "cat" / "00.png")
    for _ in range(2):
        same(before, load_cifar_4d(folder))
        said = capsys.readouterr().err
        assert said == f"{folder / name} is not used: a fifth of train/ validates\n"


@pytest.mark.parametrize("one, other", [
    ("caf\u00e9", "cafe\u0301"), ("Elk", "elk"), ("big elk", "bigelk ")])
def test_class_names_that_look_alike_are_told_apart(folder, one, other):
    (folder / "train" / "dog").rename(folder / "train" / one)
    (folder / "test" / "dog").rename(folder / "test" / other)
    message = refusal(folder)
    assert ascii(one) in message and ascii(other) in message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not read")
@pytest.mark.parametrize("name", ["train", "train/cat", "train/cat/deeper", "train/cat/07.png"])
def test_what_may_not_be_read_is_named(folder, name):
    picture(folder / "train" / "cat" / "deeper" / "00.png")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        images = shutil.copytree(folder, Path(place) / "images")
        (images / name).chmod(0)
        os.seteuid(12345)
        try:
            message = refusal(images)
        finally:
            os.seteuid(0)
    assert str(images / name) in message and "Permission denied" in message


def test_a_name_in_no_encoding_is_read(folder):
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "d\udcffg")  # how Python spells byte 255
    (folder / "train" / "cat" / "07.png").rename(folder / "train" / "cat" / "\udcfe\n.png")
    first = load_cifar_4d(folder)
    assert first.classes == ("ant", "cat", "d\udcffg")
    same(first, load_cifar_4d(folder))
    (folder / CACHE).unlink()
    (folder / "train" / "cat" / "\udcfe\n.png").write_bytes(b"")
    assert "cat/? .png cannot be read" in refusal(folder)


# Memory


def test_no_memory_is_told_in_one_line(folder, monkeypatch):
    def none_left(*_, **__):
        raise MemoryError

    for module, name, synthetic in ((image_folder, "read_picture", False), (np, "empty", False),
                                    (load_data, "generate", True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            assert "not enough memory" in refusal(folder, synthetic)


# Links


def test_links_out_of_the_folder_are_refused_by_name(folder, tmp_path):
    picture(tmp_path / "outside" / "00.png")
    for link, target in (("train/cat/zz.png", "outside/00.png"), ("train/cat/deeper", "outside"),
                         ("train/cat/dangling.png", "nowhere.png")):
        (folder / link).symlink_to(tmp_path / target)
        assert f"{folder / link} is a link" in refusal(folder)
        (folder / link).unlink()
    for place in ("test/cat", "test"):
        (folder / place).rename(tmp_path / "moved")
        (folder / place).symlink_to(tmp_path / "moved")
        assert f"{folder / place} is a link" in refusal(folder)
        (folder / place).unlink()
        (tmp_path / "moved").rename(folder / place)
    load_cifar_4d(folder)


def test_a_link_to_a_file_within_the_folder_is_followed_but_folders_cannot_go_in_circles(folder):
    (folder / "train" / "cat" / "again.png").symlink_to("00.png")
    assert len(load_cifar_4d(folder).train.labels) == 49
    (folder / "train" / "cat" / "circle").symlink_to("..")
    assert "circle is a link" in refusal(folder)


@pytest.mark.parametrize("name", [CACHE, f".{CACHE}.tmp", LOCK])
def test_nothing_is_written_through_a_link_in_the_folder(folder, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / name).symlink_to(victim)
    load_cifar_4d(folder)
    assert victim.read_text() == "mine"


# The cache


def test_pictures_are_decoded_once(folder, capsys):
    first = load_cifar_4d(folder)
    assert "decoding 72 pictures" in capsys.readouterr().err
    same(first, load_cifar_4d(folder))
    assert capsys.readouterr().err == ""
    moved = folder.rename(folder.with_name("elsewhere"))
    same(first, load_cifar_4d(moved))
    assert capsys.readouterr().err == ""


def exchange(a, b):
    a.rename(a.with_suffix(".x"))
    b.rename(a)
    a.with_suffix(".x").rename(b)


def copy_over(a, b):
    """As `cp -p` and rsync copy: size and time stay."""
    content, times = a.read_bytes(), a.stat()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    for path in (a, b):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [
    lambda f: picture(f / "train" / "cat" / "new.png"),
    lambda f: (f / "train" / "cat" / "07.png").unlink(),
    lambda f: (f / "train" / "cat" / "07.png").rename(f / "train" / "ant" / "77.png"),
    lambda f: picture(f / "test" / "cat" / "03.png", seed=5000),
    lambda f: os.utime(f / "test" / "cat" / "03.png", ns=(1, 1)),
    lambda f: exchange(f / "test" / "cat" / "03.bmp", f / "test" / "dog" / "03.bmp"),
    lambda f: copy_over(f / "test" / "cat" / "03.bmp", f / "test" / "dog" / "03.bmp"),
])
def test_a_changed_folder_is_noticed(folder, change, capsys):
    for name in ("cat", "dog"):
        picture(folder / "test" / name / "03.bmp", seed=len(name) + ord(name[0]))
        os.utime(folder / "test" / name / "03.bmp", ns=(1, 1))  # of one size, as all of this kind
    load_cifar_4d(folder)
    change(folder)
    capsys.readouterr()
    changed = load_cifar_4d(folder)
    assert "decoding" in capsys.readouterr().err
    (folder / CACHE).unlink()
    same(changed, load_cifar_4d(folder))


def test_a_damaged_cache_is_made_again(folder, capsys):  # more in test_command_line.py
    first, path = load_cifar_4d(folder), folder / CACHE
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole + b"x", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(data)
        capsys.readouterr()
        same(first, load_cifar_4d(folder))
        assert "decoding" in capsys.readouterr().err and path.read_bytes() == whole


def test_a_cache_that_another_decoder_made_is_made_again(folder, monkeypatch, capsys):
    """As after an update of store/pictures.py or of Pillow."""
    load_cifar_4d(folder)
    command = [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); "
               "from store.cache import DECODER; print(DECODER)"]
    copy = shutil.copytree(Path(cache.__file__).parent, folder.parent / "copy" / "store")
    found = []
    for change in ("", "# another rule"):
        (copy / "pictures.py").write_text((copy / "pictures.py").read_text() + change)
        found.append(subprocess.check_output([*command, copy.parent], text=True).strip())
    assert found[0] == str(cache.DECODER) != found[1] and cache.DECODER[0] == PIL.__version__
    monkeypatch.setattr(cache, "DECODER", found[1])
    capsys.readouterr()
    load_cifar_4d(folder)
    assert "decoding" in capsys.readouterr().err


def test_a_cache_of_40_gb_is_not_read(folder, monkeypatch):
    first, read = load_cifar_4d(folder), []
    os.truncate(folder / CACHE, 40 * 2**30)
    monkeypatch.setattr(cache.json, "loads", read.append)
    same(first, load_cifar_4d(folder))
    assert not read and (folder / CACHE).stat().st_size < 2**20


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_cache_of_another_user_is_not_believed(folder, monkeypatch):
    first = load_cifar_4d(folder)
    (folder / CACHE).unlink()
    monkeypatch.setattr(image_folder, "_decode", lambda _, paths: np.zeros(
        (len(paths), 3, 32, 32), np.uint8))
    forged = load_cifar_4d(folder)
    content = (folder / CACHE).read_bytes()
    monkeypatch.undo()
    same(forged, load_cifar_4d(folder))  # one's own is believed
    os.chown(folder / CACHE, 12345, 12345)
    same(first, load_cifar_4d(folder))
    (folder / CACHE).write_bytes(content)
    for path in (folder / CACHE, folder):
        os.chown(path, 12345, 12345)
    same(forged, load_cifar_4d(folder))  # whoever owns the folder could put any data there


def test_who_holds_the_lock_is_told_while_it_is_waited_for(folder):
    with lock(folder / LOCK) as held:
        assert held
        worker = subprocess.Popen([sys.executable, "-c", PROCESS, folder], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        stop = threading.Timer(60, worker.kill)
        stop.start()
        line = worker.stderr.readline()
        stop.cancel()
        assert line.startswith("waiting for") and f"process {os.getpid()} on" in line
        assert str(folder / LOCK) in line
        assert worker.poll() is None
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0 and "decoding" in err and "waiting" not in err
    assert out.split()[0] == load_cifar_4d(folder).fingerprint


def test_a_folder_that_takes_no_files_is_read_without_a_cache(folder, capsys):
    (folder / CACHE).mkdir()  # neither can be written: as in a read-only folder, but for root too
    (folder / LOCK).mkdir()
    load_cifar_4d(folder)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "not kept" in lines[1]


def test_workers_that_start_at_once_decode_once(folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen([sys.executable, "-c", PROCESS, folder], **pipes) for _ in range(3)]
    outputs = [worker.communicate(timeout=60) for worker in workers]
    assert [out.split()[0] for out, _ in outputs] == [load_cifar_4d(folder).fingerprint] * 3
    assert "".join(err for _, err in outputs).count("decoding") == 1


# The official files


@pytest.fixture
def official(monkeypatch, tmp_path):
    """Small files in the official layout, and torchvision told that theirs are the right sums."""
    from torchvision.datasets import CIFAR10

    source = tmp_path / "source"
    batches = source / BATCHES
    batches.mkdir(parents=True)
    rng = np.random.RandomState(0)

    def write(name, content):
        (batches / name).write_bytes(pickle.dumps(content, protocol=2))
        return md5(batches / name)

    def batch():
        return {"data": rng.randint(0, 256, (20, 3072), dtype=np.uint8),
                "labels": rng.randint(0, 3, 20).tolist()}

    for attribute in ("train_list", "test_list"):
        sums = [[name, write(name, batch())] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, sums)
    sum_of_meta = write("batches.meta", {"label_names": ["ant", "cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sum_of_meta})
    pack(monkeypatch, source / CIFAR10.filename, batches)
    return source


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pack(monkeypatch, archive, batches, *extra):
    """Write an archive with the right sum; `extra` are more members, (TarInfo, bytes)."""
    from torchvision.datasets import CIFAR10

    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, BATCHES)
        for member, data in extra:
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))


def test_of_the_official_files_the_last_fifth_validates(official):
    data = load_cifar_4d(official)
    assert data.source == "official" and data.classes == ("ant", "cat", "dog")
    paths = [official / BATCHES / f"data_batch_{i}" for i in range(1, 6)]
    batches = [pickle.loads(path.read_bytes()) for path in paths]
    first = np.concatenate([batch["data"] for batch in batches[:4]])
    assert np.array_equal(data.train.images.flatten(1), first)
    assert np.array_equal(data.val.images.flatten(1), batches[4]["data"])
    assert data.val.labels.tolist() == batches[4]["labels"]
    assert len(data.test.labels) == 20


def test_decoded_official_files_are_read_without_torchvision(official):
    first = load_cifar_4d(official)
    command = [sys.executable, "-c", PROCESS, official]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == [first.fingerprint, "False"]


class Bomb:
    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_pickle_that_is_exchanged_after_its_check_never_runs(official, tmp_path, monkeypatch):
    def read_then_exchange(path, most):
        content = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
        return content

    monkeypatch.setattr(official_files, "read_file", read_then_exchange)
    assert load_cifar_4d(official).source == "official"
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_the_place_of_a_batch_never_runs(official, tmp_path):
    load_cifar_4d(official)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        path = official / BATCHES / name
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
        assert f"{path} is missing or not the official file" in refusal(official)
        path.unlink()
        assert f"{path} is missing or not the official file" in refusal(official)
        path.write_bytes(whole)
    assert not (tmp_path / "ran").exists()


def test_an_archive_in_place_is_read_where_it_lies(official, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(official / ARCHIVE, tmp_path / "data")
    same(load_cifar_4d(official), load_cifar_4d(tmp_path / "data"))
    assert {path.name for path in (tmp_path / "data").iterdir()} == {ARCHIVE, CACHE}


def test_an_archive_with_another_sum_is_refused_and_kept(official, tmp_path):
    archive = tmp_path / "data" / ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(b"mine")
    assert f"{archive} is missing or not the official file" in refusal(tmp_path / "data")
    assert archive.read_bytes() == b"mine" and not (archive.parent / BATCHES).exists()


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def test_from_an_archive_nothing_is_written(official, tmp_path, monkeypatch):
    data = tmp_path / "a" / "data"
    data.mkdir(parents=True)
    pack(monkeypatch, data / ARCHIVE, official / BATCHES, *[
        (member("../evil"), b"x"), (member(f"{BATCHES}/../../../evil"), b"x"),
        (member("door", type=tarfile.SYMTYPE, linkname="../.."), b""), (member("door/evil"), b"x"),
        (member("door", type=tarfile.LNKTYPE, linkname="../../secret"), b""),
        (member("pipe", type=tarfile.FIFOTYPE), b""), (member(f"{BATCHES}/more"), b"x")])
    expected = load_cifar_4d(official).fingerprint
    before = set(tmp_path.rglob("*"))
    assert load_cifar_4d(data).fingerprint == expected
    assert set(tmp_path.rglob("*")) - before == {data / CACHE}


def test_real_batches_load_only_when_torchvision_is_given_their_sums(
        real_batches, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    batches = tmp_path / BATCHES
    batches.symlink_to(real_batches / BATCHES)
    assert "data_batch_1 is missing or not the official file" in refusal(tmp_path)
    for attribute in ("train_list", "test_list"):
        sums = [[name, md5(batches / name)] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, sums)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches / "batches.meta")})
    data = load_cifar_4d(tmp_path)
    for split, train in ((data.test, False), (data.train, True)):
        theirs = CIFAR10(tmp_path, train)
        images = torch.from_numpy(theirs.data[:40_000]).permute(0, 3, 1, 2)
        assert torch.equal(split.images, images)
        assert split.labels.tolist() == theirs.targets[:40_000]
    assert data.classes == tuple(theirs.classes) and len(data.val.labels) == 10_000


def test_real_images_are_decoded_once(real_images, capsys):
    first = load_cifar_4d(real_images)
    assert [len(split.images) for split in first[:3]] == [40_000, 10_000, 10_000]
    capsys.readouterr()
    assert load_cifar_4d(real_images).fingerprint == first.fingerprint
    assert first.fingerprint in (ROOT / "results" / "mlp.json").read_text()  # of published runs
    assert capsys.readouterr().err == ""


def test_the_mlp_learns_the_real_images(real_images):
    data = load_cifar_2d(real_images)
    data = data._replace(test=data.test._make(part[:250] for part in data.test))
    trainer = trainer_of(settings_of("mlp", batch_size=128), data)
    assert max(trainer.run_epoch()["val_acc"] for _ in range(2)) > 0.40


# The download


@pytest.fixture
def server(official, monkeypatch):
    """Give the archive another address, where these bytes answer, or nothing; returns who asked."""
    from torchvision.datasets import CIFAR10

    sockets, requests = [], []

    def answer(reply=None):
        if reply == "well":
            archive = (official / ARCHIVE).read_bytes()
            reply = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(archive) + archive
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=serve, args=(sockets[-1], reply), daemon=True).start()
        address = f"http://127.0.0.1:{sockets[-1].getsockname()[1]}/"
        monkeypatch.setattr(CIFAR10, "url", address)
        return requests

    def serve(listening, reply):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listening.accept()
                requests.append(caller.recv(10_000))
                if reply is None:
                    sockets.append(caller)
                else:
                    with caller:
                        caller.sendall(reply)

    yield answer
    for each in sockets:
        each.close()


def test_nothing_is_downloaded_into_a_folder_that_was_named_by_mistake(server, tmp_path):
    requests = server("well")
    assert "there is no folder" in refusal(tmp_path / "mistyped")
    images = tmp_path / "images"
    (images / "train" / "cat").mkdir(parents=True)
    assert "holds neither train/ and test/ nor CIFAR-10 for Python, but cat; name" in refusal(
        images / "train")
    assert not requests and not (tmp_path / "mistyped").exists()
    assert not list((images / "train").glob(".*"))


@pytest.mark.parametrize("names, words", [
    (["cifar-100-python/train", "cifar-100-python/meta"], "but CIFAR-100; name"),
    (["cifar-100-python.tar.gz"], "CIFAR-100"),
    (["cifar-10-batches-bin/data_batch_1.bin"], "CIFAR-10 in binary form"),
    (["data_batch_1.bin"], "CIFAR-10 in binary form"),
    (["cifar-10-binary.tar.gz"], "CIFAR-10 in binary form"),
    (["cifar-10-batches-mat/data_batch_1.mat"], "CIFAR-10 for MATLAB"),
    (["cifar-10-matlab.tar.gz"], "CIFAR-10 for MATLAB"),
    (["plain_text/train-00000-of-00001.parquet", "README.md"], "Hugging Face's parquet files"),
    (["train.7z", "test.7z", "sampleSubmission.csv"], "as Kaggle packs it"),
    (["trainLabels.csv"], "as Kaggle packs it"),
    (["a.zip", "b", "c", "d", "e"], "but a.zip, b, c, d, ...; name a folder with train/<class>/"),
    (["cifar-10-images.zip"], "cifar-10-images.zip"),
    (["cifar-10-batches-py.old"], "cifar-10-batches-py.old"),
    (["data_batch_1"], "{0} has the files of CIFAR-10; put them into {0}/cifar-10-batches-py "),
    (["x/cifar-10-batches-py/data_batch_1"], "name {0}/x instead"),
])
def test_other_data_is_named_and_nothing_downloaded_into_it(server, tmp_path, names, words):
    requests, place = server("well"), tmp_path / "there"
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"x")
    assert words.format(place) in refusal(place)
    assert not requests and not list(place.glob(".*"))


def test_the_folder_of_the_official_files_itself_names_its_parent(server, official, monkeypatch):
    requests = server("well")
    assert f"name {official} instead" in refusal(official / BATCHES)
    monkeypatch.chdir(official / BATCHES)
    assert f"name {official} instead" in refusal(".")
    assert not requests


def test_the_archive_is_downloaded_once(server, official, tmp_path, capsys):
    requests = server("well")
    (tmp_path / "new" / "data").mkdir(parents=True)
    same(load_cifar_4d(tmp_path / "new" / "data"), load_cifar_4d(official))
    asked = len(requests)  # torchvision asks twice: first where the address leads
    assert asked > 0
    load_cifar_4d(tmp_path / "new" / "data")
    assert len(requests) == asked
    assert "downloading" in (shown := capsys.readouterr().err) and "100%" in shown
    assert {p.name for p in (tmp_path / "new" / "data").iterdir()} == {
        ARCHIVE, CACHE}


@pytest.mark.parametrize("reply, reason", [
    (b"HTTP/1.0 404 Not Found\r\n\r\n", "404"), (b"HTTP/1.0 200 OK\r\n\r\nhalf", "corrupted"),
    (b"what?", "what?"), (None, "timed out")])
def test_a_failed_download_names_the_ways_out_and_leaves_nothing(
        server, tmp_path, monkeypatch, reply, reason):
    monkeypatch.setattr(official_files, "STALL_LIMIT", 0.5)
    server(reply)
    data = tmp_path / "data"
    data.mkdir()
    message = refusal(data)
    for words in (reason, str(data / ARCHIVE), "--data_dir", "--synthetic"):
        assert words in message
    assert list(data.iterdir()) == []
    server("well")
    assert load_cifar_4d(data).source == "official"


def test_what_a_killed_download_left_is_no_hindrance(server, tmp_path):
    server("well")
    data = tmp_path / "data"
    data.mkdir()
    (data / PART).write_bytes(b"half")
    assert load_cifar_4d(data).source == "official"
    assert {path.name for path in data.iterdir()} == {ARCHIVE, CACHE}


def test_a_download_is_not_written_through_a_link_and_deletes_nothing(server, tmp_path):
    server("well")
    mine = tmp_path / "data" / ".download" / "mine.txt"
    mine.parent.mkdir(parents=True)
    for path in (mine, tmp_path / "victim"):
        path.write_text("mine")
    (tmp_path / "data" / PART).symlink_to(tmp_path / "victim")
    assert load_cifar_4d(tmp_path / "data").source == "official"
    assert mine.read_text() == (tmp_path / "victim").read_text() == "mine"


# The generated set


@pytest.fixture(scope="module")
def synthetic():
    return load_cifar_4d(synthetic=True)


def test_the_generated_set_is_the_same_everywhere(synthetic):
    assert synthetic.source == "synthetic" and len(synthetic.classes) == 10
    assert [tuple(split.images.shape) for split in synthetic[:3]] == [
        (40_000, 3, 32, 32), (10_000, 3, 32, 32), (10_000, 3, 32, 32)]
    assert synthetic.fingerprint == "7c109037a93eabbc"


def test_the_generated_classes_are_found_by_filters_and_not_by_pixels(synthetic):
    train, test = synthetic.train, synthetic.test
    x = normalize(train.images[:8000]).flatten(1)
    y = torch.nn.functional.one_hot(train.labels[:8000]).float()
    linear = torch.linalg.solve(x.mT @ x + 100 * torch.eye(3072), x.mT @ y)
    answers = (normalize(test.images).flatten(1) @ linear).argmax(1)
    by_pixels = (answers == test.labels).float().mean()

    shapes = torch.from_numpy(synthetic_shapes()).float()
    shapes -= shapes.mean((1, 2), keepdim=True)
    shapes /= shapes.square().sum((1, 2), keepdim=True).sqrt()
    few = normalize(test.images[:1000])
    found = torch.nn.functional.conv2d(few.reshape(-1, 1, 32, 32), shapes[:, None])
    found = found.unflatten(0, (1000, 3))
    by_filters = (found.square().sum(1).amax((2, 3)).argmax(1) == test.labels[:1000]).float().mean()
    assert by_pixels < 0.15 and by_filters > 0.7
