"""--evaluate and --predict: the numbers are the run's own, and any picture gets one answer."""

import io
import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_image_folder
from in_process import LOAD, build, main, only_run
from PIL import Image

from lab import evaluation
from lab.evaluation import find_run, its_data_dir, table
from load_data import load_cifar_4d, normalize
from store.files import UserError
from store.pictures import read_picture
from store.trained import class_probabilities, read_trained, restore

NETWORKS = ("mlp", "cnn")


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """A folder of runs: one of each network, some epochs old."""
    runs_dir = tmp_path_factory.mktemp("runs")
    for network, epochs in (("mlp", 8), ("cnn", 2)):
        assert main(network, "--data_dir", image_folder, "--runs_dir", runs_dir, "--batch_size", 16,
                    "--num_epochs", epochs) == 0
    return runs_dir


def error_of(capsys) -> str:
    """What was printed on stderr, which must be one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


# --evaluate


@pytest.mark.parametrize("network", NETWORKS)
def test_evaluation_tells_what_the_run_recorded(network, trained, image_folder, capsys):
    assert main(network, "--data_dir", image_folder, "--runs_dir", trained, "--evaluate", "16_0.001_0.2") == 0
    printed, run = capsys.readouterr().out, only_run(trained, network)
    kept, result = json.loads((run.folder / "evaluation.json").read_text()), run.result()
    assert (kept["loss"], kept["accuracy"]) == (result["test_loss"], result["test_acc"])
    assert kept["epoch"] == result["best_epoch"]
    assert f"loss      {result['test_loss']:.4f}   (the run recorded {result['test_loss']:.4f})" in printed
    assert f"accuracy  {result['test_acc']:.4f}   (the run recorded {result['test_acc']:.4f})" in printed
    assert max(map(len, table(kept, 100).splitlines())) <= 100
    assert table(kept, 100) in printed


def test_confusion_and_accuracy_per_class_count_the_answers(trained, image_folder, capsys):
    main("mlp", "--data_dir", image_folder, "--runs_dir", trained, "--evaluate", "16_0.001_0.2")
    run = only_run(trained, "mlp")
    kept = json.loads((run.folder / "evaluation.json").read_text())
    data = LOAD["mlp"](image_folder)
    network = build(read_trained(run, "mlp", build).settings)
    network.load_state_dict(torch.load(run.folder / "best.pt", weights_only=True)["network"])
    with torch.no_grad():
        answers = network.eval()(normalize(data.test.images)).argmax(1)
    confusion = [[0] * 10 for _ in range(10)]
    for label, answer in zip(data.test.labels.tolist(), answers.tolist(), strict=True):
        confusion[label][answer] += 1
    assert kept["confusion"] == confusion
    assert kept["per_class"] == [round(confusion[i][i] / 6, 6) for i in range(10)]
    assert kept["classes"] == list(data.classes)
    assert 0.2 < kept["accuracy"] < 1, "a network that is always or never right tells nothing here"


def test_the_surest_mistakes_are_drawn(trained, image_folder, tmp_path, capsys):
    main("cnn", "--data_dir", image_folder, "--runs_dir", trained, "--evaluate", "16_0.001_0.2")
    path = only_run(trained, "cnn").folder / "mistakes.png"
    assert f"{path}: the " in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.width > 1000
    test = load_cifar_4d(image_folder).test
    right = torch.nn.functional.one_hot(test.labels, 10).float()
    assert evaluation.draw_mistakes(path, test, right, ["a"] * 10) == 0
    assert not path.exists(), "a picture of an older state stays"
    wrong = right.clone()
    wrong[7] = right[7].roll(1)
    assert evaluation.draw_mistakes(tmp_path / "one.png", test, wrong, ["$x_", "b^{$"] + ["c"] * 8) == 1


def table_of(classes: list[str], count: int, width: int = 100) -> list[str]:
    confusion = (np.eye(len(classes), dtype=int) * count).tolist()
    confusion[1][0] = 3
    return table({"classes": classes, "confusion": confusion, "per_class": [1.0] * len(classes)}, width).splitlines()


@pytest.mark.parametrize("width", (60, 100))
@pytest.mark.parametrize("classes", (2, 10, 14, 40))
@pytest.mark.parametrize("count", (1, 1000, 10_000_000))
def test_the_table_fits_into_the_width_and_no_name_is_cut(count, classes, width):
    names = [f"rather long class {i}" for i in range(classes)]
    lines = table_of(names, count, width)
    assert max(map(len, lines)) <= width
    assert all(any(name in line for line in lines) for name in names)
    digits = max(3, len(str(count))) + 1
    assert ("most frequent confusions" in lines) == (classes * digits > width - 31)
    assert any(line.split()[-1] != "." for line in lines)


def test_columns_of_the_table_are_aligned():
    lines = table_of(["airplane", "automobile", "bird"], 970)
    assert lines[1] == "class          acc airplane automobile bird"
    assert lines[3] == "automobile  1.0000        3        970    ."
    lines = table_of(["airplane", "automobile", "bird"], 970, 40)
    assert lines[1] == "class            acc   0   1   2"
    assert lines[3] == "1 automobile  1.0000   3 970   ."


def test_names_of_classes_cannot_steer_the_terminal():
    assert "\x1b" not in "".join(table_of(["a\x1b[31m", "b\n"], 1))


# Which run


@pytest.mark.parametrize("name", ("16_0.001_0.2_False_False_2d_seed0", "16_0.001_0.2", "16_1e-3_0.20", "16", "16_0.001",
                                  "16_0.001_0.2_False", "16_0.001_0.2_False_False_2d"))
def test_a_name_may_lack_its_end(name, trained):
    assert find_run(trained / "cnn", name, "cnn").name == "16_0.001_0.2_False_False_2d_seed0"


def runs_named(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


def test_a_name_means_the_defaults_first_and_then_what_is_unique(tmp_path):
    folder = runs_named(tmp_path / "mlp", "32_0.001_0.2_False_False_seed0", "32_0.001_0.2_False_False_seed0_bf16",
                        "32_0.001_0.2_True_False_seed1", "32_0.001_0.25_False_False_seed3",
                        "8_0.001_0.2_False_False_seed1", "8_0.001_0.2_False_False_seed2")
    assert find_run(folder, "32", "mlp").name == "32_0.001_0.2_False_False_seed0"
    assert find_run(folder, "32_0.001_0.2", "mlp").name == "32_0.001_0.2_False_False_seed0"
    assert find_run(folder, "32_0.001_0.2_True", "mlp").name == "32_0.001_0.2_True_False_seed1"
    assert find_run(folder, "32_0.001_0.25", "mlp").name == "32_0.001_0.25_False_False_seed3"
    path = folder / "32_0.001_0.2_True_False_seed1"
    assert find_run(folder, str(path), "mlp").name == path.name
    with pytest.raises(UserError, match=r"8 could be any of 8_0.001_0.2_False_False_seed1, .*; name more of it"):
        find_run(folder, "8", "mlp")
    with pytest.raises(UserError, match=r"there is no run 64 in .*, which has 32_0.001_0.25_False_False_seed3, "):
        find_run(folder, "64", "mlp")
    with pytest.raises(UserError, match="there is no run"):
        find_run(folder, "", "mlp")
    with pytest.raises(UserError, match="has no runs; give the folder of one"):
        find_run(tmp_path / "cnn", "32_0.001_0.2", "cnn")


def test_long_lists_of_runs_are_cut(tmp_path):
    runs_named(tmp_path, *(f"{i}_0.001_0.2_False_False_seed0" for i in range(60)))
    with pytest.raises(UserError, match="and 52 more"):
        find_run(tmp_path, "nothing", "mlp")


def test_an_unfinished_run_can_be_evaluated(trained, image_folder, tmp_path, capsys):
    folder = copied(only_run(trained, "mlp").folder, tmp_path, without="result.json")
    assert main("mlp", "--data_dir", image_folder, "--evaluate", folder) == 0
    assert "of a run that is not finished" in capsys.readouterr().out


def copied(folder, place, without=None):
    copy = place / folder.name
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name != without:
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def damaged(content: bytes) -> dict:
    def of(value) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    best = torch.load(io.BytesIO(content), weights_only=True)
    return {"cut off": content[:-500], "empty": b"", "flipped": content[:3000] + b"\x55" + content[3001:],
            "other keys": of({"network": best["network"]}), "no dict": of([1]), "evil": of({**best, "network": Evil()}),
            "other shapes": of({**best, "network": {key: value[:1] for key, value in best["network"].items()
                                                    if value.dim()}}),
            "no weights": of({**best, "network": 3})}


@pytest.mark.parametrize("kind", ("cut off", "empty", "flipped", "other keys", "no dict", "evil", "other shapes",
                                  "no weights"))
def test_damaged_weights_are_one_line(kind, trained, image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = copied(only_run(trained, "mlp").folder, tmp_path)
    (folder / "best.pt").write_bytes(damaged((folder / "best.pt").read_bytes())[kind])
    assert main("mlp", "--data_dir", image_folder, "--evaluate", folder) == 2
    assert str(folder) in error_of(capsys)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"network": "mlp"', '"network": "cnn"', "is a run of the cnn; evaluate it with its main.py"),
    ('"classes"', '"clusses"', "is missing or damaged"),
    ('"batch_size"', '"batchsize"', "is missing or damaged"),
    ('"hidden_size": 100', '"hidden_size": 10000000000000', "must be a whole number from 1 to 65536"),
    ('"hidden_size": 100', '"hidden_size": "many"', "must be a whole number from 1 to 65536"),
    ("{", "[", "is missing or damaged")])
def test_a_damaged_config_is_one_line(old, new, message, trained, image_folder, tmp_path, capsys):
    folder = copied(only_run(trained, "mlp").folder, tmp_path)
    path = folder / "config.json"
    path.write_text(path.read_text().replace(old, new, 1))
    assert main("mlp", "--data_dir", image_folder, "--evaluate", folder) == 2
    assert message in error_of(capsys)


def test_a_run_without_weights_is_one_line(trained, image_folder, tmp_path, capsys):
    folder = copied(only_run(trained, "mlp").folder, tmp_path, without="best.pt")
    assert main("mlp", "--data_dir", image_folder, "--evaluate", folder) == 2
    assert "a run has it after its first epoch" in error_of(capsys)


def test_other_data_with_the_same_classes_is_named_and_nothing_kept(trained, tmp_path, capsys):
    folder = copied(only_run(trained, "mlp").folder, tmp_path, without="evaluation.json")
    other = write_image_folder(tmp_path / "other", 6, 3, seed=1)
    (folder / "mistakes.png").unlink(missing_ok=True)
    assert main("mlp", "--data_dir", other, "--evaluate", folder) == 0
    printed = capsys.readouterr().out
    assert "test set: 30 images, image folder -- NOT the data of this run" in printed
    assert "recorded" not in printed
    assert not (folder / "evaluation.json").exists()
    assert not (folder / "mistakes.png").exists()


def test_without_a_data_dir_the_folder_that_the_run_was_trained_on_is_taken(trained, image_folder, tmp_path, capsys):
    folder = copied(only_run(trained, "mlp").folder, tmp_path)
    assert main("mlp", "--data_dir", image_folder, "--evaluate", folder) == 0
    with_it = capsys.readouterr().out
    assert main("mlp", "--evaluate", folder) == 0
    assert capsys.readouterr().out == with_it
    assert main("mlp", "--evaluate", folder, "--synthetic") == 2  # other classes: the flag is heard
    assert "other classes" in error_of(capsys)


@pytest.mark.parametrize("source", ("image folder", "official"))
@pytest.mark.parametrize("named", (True, False))
def test_the_folder_of_a_run_that_is_gone_has_to_be_named(source, named, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "DATA_DIR", tmp_path / "default")
    (tmp_path / "gone").mkdir()  # empty: nothing is downloaded because a run's config.json says so
    run = only_run(trained, "mlp").read()
    data = {"source": source, "folder": str(tmp_path / "gone")} if named else {"source": source}
    run = replace(run, config={**run.config, "data": data})
    if source == "official" and not named:
        assert its_data_dir(run) is None  # of the default folder, which may be filled
        return
    with pytest.raises(UserError, match=f"not in {tmp_path}/{'gone' if named else 'default'}; .*--data_dir"):
        its_data_dir(run)


def test_other_classes_are_refused(trained, tmp_path, capsys):
    other = write_image_folder(tmp_path / "other", 6, 3, classes=3)
    assert main("mlp", "--data_dir", other, "--runs_dir", trained, "--evaluate", "16_0.001_0.2") == 2
    assert "was trained on other classes" in capsys.readouterr().err


# --predict


def save(folder, name: str, image: Image.Image, **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.fixture
def pictures(tmp_path, image_folder):
    """A picture of every kind, and what its name says."""
    random = np.random.RandomState(0)
    photo = Image.fromarray(random.randint(0, 256, (30, 40, 3), dtype=np.uint8)).resize((200, 150))
    alpha = photo.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    return [
        save(tmp_path, "photo.jpg", photo), save(tmp_path, "large.jpg", photo.resize((3000, 2000))),
        save(tmp_path, "alpha.png", alpha), save(tmp_path, "grey.png", photo.convert("L")),
        save(tmp_path, "grey alpha.png", alpha.convert("LA")), save(tmp_path, "palette.gif", photo.convert("P")),
        save(tmp_path, "one bit.bmp", photo.convert("1")), save(tmp_path, "cmyk.tiff", photo.convert("CMYK")),
        save(tmp_path, "float.tiff", photo.convert("F")), save(tmp_path, "web.webp", photo),
        save(tmp_path, "tiny.png", photo.resize((1, 1))), save(tmp_path, "strip.png", photo.resize((5000, 3))),
        image_folder / "test" / "class1" / "0000.png"]


@pytest.mark.parametrize("network", NETWORKS)
def test_one_picture_at_a_time_and_as_a_batch_give_the_same_answer(network, trained, pictures, tmp_path, capsys):
    def printed(paths) -> list[str]:
        assert main(network, "--data_dir", tmp_path / "nothing", "--runs_dir", trained, "--evaluate", "16_0.001_0.2",
                    "--predict", *paths) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    together = printed(pictures)
    assert together == [line for path in pictures for line in printed([path])]
    assert together[::-1] == printed(pictures[::-1])
    for path, line in zip(pictures, together, strict=True):
        answer = line.removeprefix(str(path)).split()
        shares = [float(share) for share in answer[1::2]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert {name.rstrip("0123456789") for name in answer[0::2]} == {"class"}
    assert len(set(together)) > 5
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("network", NETWORKS)
def test_probabilities_do_not_depend_on_the_other_pictures(network, trained):
    run = read_trained(only_run(trained, network), network, build)
    model = restore(run, build, torch.device("cpu")).double()
    images = torch.randint(0, 256, (9, 3072) if network == "mlp" else (9, 3, 32, 32), dtype=torch.uint8)
    together = class_probabilities(model, images)
    alone = torch.cat([class_probabilities(model, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.sum(1), torch.ones(9, dtype=torch.float64))


def test_pictures_of_the_test_set_get_the_classes_that_evaluation_counts(trained, image_folder, capsys):
    main("mlp", "--data_dir", image_folder, "--runs_dir", trained, "--evaluate", "16_0.001_0.2")
    capsys.readouterr()
    kept = json.loads((only_run(trained, "mlp").folder / "evaluation.json").read_text())
    paths = sorted((image_folder / "test" / "class9").iterdir())
    main("mlp", "--runs_dir", trained, "--evaluate", "16_0.001_0.2", "--predict", *paths)
    answers = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert [answers.count(f"class{i}") for i in range(10)] == kept["confusion"][9]


def test_a_32x32_picture_is_taken_as_it_is(image_folder):
    path = image_folder / "test" / "class3" / "0001.png"
    with Image.open(path) as image:
        assert np.array_equal(read_picture(path), np.asarray(image).transpose(2, 0, 1))


def half_and_half(left, right, size=(64, 64), mode="RGB") -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def corners(path) -> tuple:
    picture = read_picture(path)
    return tuple(picture[:, 16, 2].tolist()), tuple(picture[:, 16, -3].tolist())


def test_kinds_of_pixels(tmp_path):
    red, half, none = (255, 0, 0, 255), (255, 0, 0, 128), (9, 200, 30, 0)
    assert corners(save(tmp_path, "a.png", half_and_half(red, none, mode="RGBA"))) == ((255, 0, 0), (128, 128, 128))
    (_, (r, g, b)) = corners(save(tmp_path, "b.png", half_and_half(red, half, mode="RGBA")))
    assert abs(r - 192) <= 1
    assert abs(g - 64) <= 1
    assert abs(b - 64) <= 1
    assert corners(save(tmp_path, "c.png", half_and_half(40, 200, mode="L"))) == ((40,) * 3, (200,) * 3)
    palette = half_and_half((10, 20, 30), (200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)
    clear = palette.getpixel((60, 5))
    assert corners(save(tmp_path, "d.png", palette)) == ((10, 20, 30), (200, 100, 50))
    assert corners(save(tmp_path, "e.png", palette, transparency=clear)) == ((10, 20, 30), (128,) * 3)
    deep = np.full((64, 64), 257 * 40, np.uint16)
    deep[:, 32:] = 257 * 200
    assert corners(save(tmp_path, "f.png", Image.fromarray(deep))) == ((40,) * 3, (200,) * 3)


def test_the_central_square_is_scaled(tmp_path):
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 150, 100))
    image.paste((0, 255, 0), (150, 0, 200, 100))
    assert corners(save(tmp_path, "wide.png", image)) == ((0, 0, 255), (0, 255, 0))
    assert corners(save(tmp_path, "high.png", image.rotate(90, expand=True).resize((64, 192)))) != (
        (0, 0, 255), (0, 255, 0))
    stripes = np.zeros((320, 320), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing this would be black or white
    assert abs(read_picture(save(tmp_path, "stripes.png", Image.fromarray(stripes))).astype(int) - 127).max() < 5


def test_photographs_are_turned_upright(tmp_path):
    note = Image.Exif()
    note[0x0112] = 6  # to be turned by a quarter, clockwise
    turned = half_and_half((255, 0, 0), (0, 0, 255)).rotate(90)
    path = save(tmp_path, "turned.png", turned, exif=note)
    assert corners(path) == ((255, 0, 0), (0, 0, 255))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def unreadable(tmp_path, pictures):
    """Paths by what is wrong with them."""
    photo = pictures[0].read_bytes()
    contents = {"text": b"no picture", "empty": b"", "cut off": photo[:len(photo) // 2], "bomb": bomb(100_000, 100_000),
                "smaller bomb": bomb(10_000, 9_000), "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
                "damaged": photo[:300] + bytes(200)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return {name: tmp_path / name for name in (*contents, "missing", "folder", "pipe")}


@pytest.mark.parametrize(("kind", "reason"), [
    ("text", "no format"), ("empty", "no format"), ("postscript", "no format"), ("cut off", "truncated"),
    ("damaged", ""), ("bomb", "exceeds limit"), ("smaller bomb", "exceed the limit"), ("missing", "no such file"),
    ("folder", "it is a folder"), ("pipe", "no such file")])
def test_what_is_no_picture_is_named_in_one_line_and_the_others_are_answered(
        kind, reason, trained, pictures, unreadable, capsys):
    paths = [pictures[0], unreadable[kind], pictures[1]]
    assert main("mlp", "--runs_dir", trained, "--evaluate", "16_0.001_0.2", "--predict", *paths) == 2
    out, message = capsys.readouterr()
    assert [line.split("  ")[0].strip() for line in out.splitlines()] == [str(paths[0]), str(paths[2])]
    assert message.count("\n") == 1
    assert f"argument --predict: {unreadable[kind]} cannot be read as a picture (" in message
    assert reason in message


def test_memory_is_bounded(tmp_path, monkeypatch):
    """A JPEG is decoded at an eighth of its size, and nothing larger than 32 x 32 comes of a very long picture."""
    sizes, resize = [], Image.Image.resize

    def watched(image, size, *rest, **box):
        sizes.append((image.size, size))
        return resize(image, size, *rest, **box)

    monkeypatch.setattr(Image.Image, "resize", watched)
    read_picture(save(tmp_path, "large.jpg", Image.new("RGB", (5000, 4000))))
    read_picture(save(tmp_path, "long.png", Image.new("RGB", (100_000, 1))))
    assert sizes == [((625, 500), (32, 32)), ((100_000, 1), (32, 32))]
