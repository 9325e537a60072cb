"""The page of a run: one file with nothing beside it, whose decoder is PyTorch's up to the rounding of its weights."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from pages import ARGUMENTS, own_model, read, rounded, trained
from PIL import Image
from torch import nn

from lae_fast import VAE, data, models, train, view
from lae_fast.checkpoint import CheckpointError
from lae_fast.data import Split
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from lae_fast.view import page, records
from lae_fast.view.network import CannotRun, network
from lae_fast.view.pixels import Pixels, data_uri

NODE = shutil.which("node")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "first <run>")


def test_the_end_of_training_writes_the_page(run):
    text, data = read(run)
    assert "<h1>first &lt;run&gt;</h1>" in text
    results = json.loads((run / "results.json").read_text())
    assert f"<dd>{results['test_negative_elbo']:.2f}<" in text
    assert (
        f"<dd>{results['test_importance_bound']:.2f}<small>-log p(x) is at most this, on average; 100 test images<"
        in text
    )
    assert [chart["title"] for chart in data["curves"]] == [
        "Loss, nats per image",
        "Proposals of the chain",
        "Step size",
    ]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accepted = data["curves"][1]["series"][0]["points"]
    expected = [[line["epoch"], line["acceptance_rate"]] for line in lines if "acceptance_rate" in line]
    torch.testing.assert_close(torch.tensor(accepted), torch.tensor(expected), rtol=1e-4, atol=0)
    assert "<td>2</td>" in text  # the second epoch, in numbers


def test_the_page_needs_nothing_beside_it(run):
    text, _ = read(run)
    assert len(text) < 2e6
    addresses = re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', text)
    assert addresses
    assert all(a.startswith("data:") for a in addresses)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|import\(", text)
    assert "{{" not in text


def test_the_tags_of_the_page_are_closed(run):
    open_tags = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "link", "img", "input"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Parser().feed(read(run)[0])
    assert open_tags == []


def test_the_weights_in_the_page_are_those_of_the_model(run):
    """Walked here by PyTorch's functions, they decode as the model with weights rounded to 16 bits does."""
    model, (_, data) = rounded(models.load(run / "best.safetensors")), read(run)
    z = value = torch.tensor(data["codes"])
    content, at = (
        torch.frombuffer(bytearray(base64.b64decode(data["network"]["weights"])), dtype=torch.half),
        0,
    )
    for layer in data["network"]["layers"]:
        own = {}
        for name, shape in layer["weights"].items():
            size = torch.Size(shape).numel()
            own[name], at = content[at : at + size].float().view(shape), at + size
        value = {
            "linear": lambda v, own=own: F.linear(v, **own),
            "layer_norm": lambda v, own=own, layer=layer: F.layer_norm(
                v, v.shape[1:], **own, eps=layer["eps"]
            ),
            "relu": F.relu,
            "sigmoid": torch.sigmoid,
        }[layer["kind"]](value)
    assert at == len(content) == data["network"]["n_weights"]
    torch.testing.assert_close(value, model.decode(z).detach().flatten(1), rtol=0, atol=1e-5)


def test_the_codes_in_the_page_are_those_of_the_test_images(run):
    from matplotlib import image

    model, (_, data) = models.load(run / "best.safetensors"), read(run)
    sprite = image.imread(io.BytesIO(base64.b64decode(data["originals"].split(",")[1])), format="png")
    originals = torch.from_numpy(sprite).view(-1, 64)  # grey, in [0, 1]
    assert len(originals) == len(data["codes"]) == len(data["labels"]) == 360
    torch.testing.assert_close(
        torch.tensor(data["codes"]), model.encode(originals).detach(), rtol=0, atol=1e-3
    )
    axes = {axis["name"]: axis for axis in data["axes"]}
    assert list(axes) == [*sorted(list(axes)[:3], key=lambda n: -axes[n]["variance"]), *list(axes)[3:]]
    components = torch.tensor([axes[f"principal component {k}"]["direction"] for k in (1, 2)])
    torch.testing.assert_close(components @ components.T, torch.eye(2))
    assert axes["principal component 1"]["variance"] >= max(axes[f"z{k}"]["variance"] for k in (1, 2, 3))


def test_the_command_writes_the_page_anew_with_scores(run, tmp_path, capsys):
    before = (run / "view.html").read_text()
    table = tmp_path / "table.csv"
    table.write_text(f"run,images,ais,standard_error,gap,quadrature\n{run.name},500,12.345,0.1,0.2,\n")
    assert view.main([str(run), "--table", str(table)]) == 0
    assert "view.html" in capsys.readouterr().out
    after, data = read(run)
    assert "<dd>12.35<small>± 0.10, gap 0.20 between forward and reverse; 500 test images<" in after
    assert "12.35" not in before
    assert data["codes"] == json.loads(re.search(r'id="data">(.*?)</script>', before)[1])["codes"]


TODAY = "first <run>,12.345,lae,3,0,2"  # the run of this file, after its two epochs


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        ([TODAY], None),
        (["first <run>,6.5,lae,3,0,1", TODAY, "first <run>,7.5,vae,3,0,2"], None),
        (["first <run>,6.5,lae,3,0,1"], "no row of first <run> as it is now: line 2 is of epochs 1, not 2"),
        (["first <run>,6.5,vae,3,4,2"], "line 2 is of model vae, not lae, seed 4, not 0"),
        ([TODAY, "other,6.5,lae,3,0,2", TODAY], "has several rows of first <run>, in lines 2, 4"),
    ],
)  # fmt: skip
def test_scores_are_shown_of_the_weights_of_today_only(rows, outcome, run, tmp_path, capsys):
    (table := tmp_path / "table.csv").write_text("\n".join(["run,ais,model,nz,seed,epochs", *rows]))
    before = (run / "view.html").read_bytes()
    if outcome is None:
        assert view.main([str(run), "--table", str(table)]) == 0
        assert "<dd>12.35<" in read(run)[0]
    else:
        assert view.main([str(run), "--table", str(table)]) == 2
        assert outcome in capsys.readouterr().err
        assert (run / "view.html").read_bytes() == before


def test_a_run_keeps_its_scores_under_another_name(run, tmp_path, capsys):
    """Also under one of several lines, two of which only Python knows."""
    names = [tmp_path / name for name in ("a\nb\x85c\u2028d\r\ne", "another")]
    shutil.copytree(run, names[0])
    header, row = "run,ais,model,nz,seed,epochs\r\n", TODAY.split(",", 1)[1]
    (names[0] / "table.csv").write_bytes(f'{header}"{names[0].name}",{row}\r\n'.encode())
    shutil.copy(names[0] / "table.csv", other := tmp_path / "other.csv")
    for folder in names:
        names[0].rename(folder)
        assert view.main([str(folder)]) == 0
        assert "<dd>12.35<" in read(folder)[0]
    (folder / "table.csv").write_text(f"{header}q1,{row.replace('lae', 'vae')}\nq2,{row}")
    for table in (folder / "table.csv", other):
        assert view.main([str(folder), "--table", str(table)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].endswith(
        "table.csv has no row of another, but of q1, q2; expected a table of lae_fast.score"
    )
    assert "other.csv has no row of another, but of a b" in errors[1]


def test_scores_of_before_the_run_was_resumed_are_not_shown(run, tmp_path):
    shutil.copytree(run, later := tmp_path / "later")
    (later / "table.csv").write_text("run,ais,epochs\nlater,12.345,2\n")
    assert view.main([str(later)]) == 0
    assert "<dd>12.35<" in read(later)[0]
    with (later / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 1000, "epoch": 3.0, "validation_negative_elbo": 1.0}\n')
    assert view.main([str(later)]) == 0
    assert "This run has no scores yet" in read(later)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nothing"], "nothing is not the folder of a run"),
        (["{run}", "--table", "{tmp}/none.csv"], "none.csv cannot be read"),
        (["{run}", "--table", "{run}/config.json"], "has no row of first <run>; expected a table of lae_fast.score"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_named(arguments, message, run, tmp_path, capsys):
    before = (run / "view.html").read_bytes()
    assert view.main([a.format(tmp=tmp_path, run=run) for a in arguments]) == 2
    assert message in capsys.readouterr().err
    assert (run / "view.html").read_bytes() == before


def test_a_page_names_the_classes_that_sub_folders_have(tmp_path):
    """Written at the end of training, and again by the command."""
    for i in range(40):
        folder = tmp_path / "pictures" / ("cats", "dogs")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (4, 4), dtype=torch.uint8).numpy()).save(folder / f"{i}.png")
    options = [
        "--data",
        str(tmp_path / "pictures"),
        "--nh",
        "8",
        "--depth",
        "1",
        "--nz",
        "2",
        "--epochs",
        "1",
    ]
    out = tmp_path / "run"
    assert train.main([*options, "--batch-size", "16", "--device", "cpu", "--output-dir", str(out)]) == 0
    assert read(out)[1]["classes"] == ["cats", "dogs"]
    (out / "view.html").unlink()
    assert view.main([str(out)]) == 0
    assert read(out)[1]["classes"] == ["cats", "dogs"]


def test_a_page_that_cannot_be_written_stops_no_run(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise KeyError("no page\ntoday")

    monkeypatch.setattr(view, "write", fails)
    assert train.main([*ARGUMENTS, "--epochs", "1", "--output-dir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == r"view      no page was written: 'no page\ntoday'"


AXES = [  # what the layers do to the axes, of 32 numbers
    ("the first size is left open", [nn.Unflatten(1, (-1, 4, 4)), nn.Conv2d(2, 3, 3)], (3, 2, 2)),
    ("the second size is left open", [nn.Unflatten(1, (2, -1, 4)), nn.Conv2d(2, 3, 3)], (3, 2, 2)),
    ("one axis of two", [nn.Unflatten(1, (8, 4)), nn.Unflatten(1, (2, 4)), nn.Conv2d(2, 3, 3)], (3, 2, 2)),
    ("a matrix on rows", [nn.Unflatten(1, (8, 4)), nn.Linear(4, 8)], (64,)),
    ("a matrix on rows of pixels", [nn.Unflatten(1, (2, 4, 4)), nn.Linear(4, 5), nn.Conv2d(2, 3, 3)], (3, 2, 3)),
    ("a matrix after a convolution", [nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 3, 3), nn.Linear(2, 5)], (3, 2, 5)),
]  # fmt: skip


def small_decoders():
    torch.manual_seed(0)
    rgb = nn.Sequential(
        nn.Linear(3, 2 * 3 * 5),
        nn.Unflatten(1, (2, 3, 5)),
        nn.BatchNorm2d(2),
        nn.LeakyReLU(0.1),
        nn.Sequential(nn.ConvTranspose2d(2, 4, 4, stride=2, padding=1), nn.SiLU(), nn.Dropout(0.5)),  # 6 x 10
        nn.ConvTranspose2d(4, 3, (3, 2), stride=(2, 3), padding=(0, 1), output_padding=(1, 0), bias=False),  # 14 x 27
        nn.LayerNorm([14, 27]),
        nn.Conv2d(3, 3, (4, 3), stride=(2, 1), padding=(1, 0)),  # 7 x 25
        nn.Tanh(),
    )  # fmt: skip
    with torch.no_grad():
        rgb[2].running_mean.normal_()
        rgb[2].running_var.uniform_(0.5, 2)
    return {
        "mlp": (models.build(models.Architecture(nx=20, nz=3, nh=8, depth=2)).eval(), (20,)),
        "conv": (models.build(models.Architecture(network="conv", nx=64, nz=3, nh=8, depth=2)).eval(), (64,)),
        "rgb": (own_model(rgb, Gaussian(), (3, 7, 25)), (3, 7, 25)),
        "levels": (
            own_model(nn.Sequential(nn.Linear(3, 6), nn.Sigmoid()), DiscretizedLogistic(), (6,)),
            (6,),
        ),
        "plain": (own_model(nn.Linear(3, 6, bias=False), DiscretizedLogistic(), (6,)), (6,)),
        **{
            name: (own_model(nn.Sequential(nn.Linear(3, 32), *layers), Gaussian(), shape), shape)
            for name, layers, shape in AXES
        },
    }


@pytest.mark.skipif(NODE is None, reason="no node here, which runs JavaScript")
@pytest.mark.parametrize("name", ["mlp", "conv", "rgb", "levels", "plain", *(name for name, *_ in AXES)])
def test_the_page_s_decoder_is_pytorch_s(name):
    model, _ = small_decoders()[name]
    z = 2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    source = (page.TEMPLATES / "decoder.js").read_text()
    question = json.dumps({"network": network(model), "z": z.tolist()})
    script = f"{source}\nconst q = {question}, decode = decoderOf(q.network);\nconsole.log(JSON.stringify(q.z.map((z) => [...decode(z)])));"
    answer = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=True, timeout=60)
    expected = rounded(model).decode(z).detach().flatten(1)
    atol = 2e-3 if name == "rgb" else 1e-5  # the page rounds a BatchNorm's scale and shift
    torch.testing.assert_close(torch.tensor(json.loads(answer.stdout)), expected, rtol=0, atol=atol)
    assert expected.std(0).max() > 0.01  # z matters


class Own(Likelihood):
    log_scale = None

    def mean(self, output):
        return output


class Swish(nn.SiLU):
    pass


@pytest.mark.parametrize(
    ("decoder", "likelihood", "message"),
    [
        (nn.Linear(3, 6), Own(), "does not know the likelihood Own"),
        (nn.Sequential(nn.Linear(3, 6), Swish()), Bernoulli(), "does not know the layer Swish"),
        (nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 6, 1, dilation=2)), Bernoulli(), "knows no Conv2d"),
        (nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, track_running_stats=False)), Bernoulli(), "layer BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 400_000), nn.Linear(400_000, 6)), Bernoulli(), "4,000,006 weights"),
        (
            nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 64, 65), nn.Conv2d(64, 64, 5)),
            Bernoulli(),
            "takes 381,841,600 multiplications an image",
        ),
        (
            nn.Sequential(nn.Linear(3, 200), nn.Unflatten(1, (200, 1)), nn.Linear(1, 1000), nn.Linear(1000, 1000), nn.Linear(1000, 1)),
            Bernoulli(),
            "takes 200,400,600 multiplications an image",
        ),
    ],
)  # fmt: skip
def test_a_decoder_that_the_page_cannot_run_is_named(decoder, likelihood, message):
    with torch.no_grad():
        shape = decoder(torch.zeros(2, 3)).shape[1:]
    with pytest.raises(CannotRun, match=message):
        network(own_model(decoder, likelihood, shape))


def test_a_model_without_a_run_has_a_page_without_curves(tmp_path):
    (tmp_path / "scores.csv").write_text("of something else")
    model = own_model(nn.Sequential(nn.Linear(3, 12), nn.Unflatten(1, (3, 2, 2))), Bernoulli(), (3, 2, 2))
    path = page.write(tmp_path, model, Split(torch.rand(5, 3, 2, 2), None))
    text, data = read(tmp_path)
    assert path == tmp_path / "view.html"
    assert '<p class="lede">Variational autoencoder with 3 latent dimensions.</p>' in text
    assert '<section aria-labelledby="training" hidden>' in text
    assert (data["curves"], len(data["codes"])) == ([], 5)
    assert data["network"]


def test_what_others_have_left_in_a_folder_is_in_no_page_s_way(run, tmp_path):
    model = own_model(nn.Sequential(nn.Linear(3, 12), nn.Unflatten(1, (3, 2, 2))), Bernoulli(), (3, 2, 2))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "options": {}}')
    page.write(tmp_path, model, torch.rand(5, 3, 2, 2))
    assert 'class="lede">Variational autoencoder with 3 latent dimensions.<' in read(tmp_path)[0]
    shutil.copytree(run, later := tmp_path / "later")
    (later / "notes.csv").write_bytes("a;käse".encode("latin-1"))
    (later / "table.csv").write_text("run,ais\nlater,12.345\n")
    assert view.main([str(later)]) == 0
    assert "<dd>12.35<" in read(later)[0]


@pytest.mark.parametrize("shape", [(3, 2, 5), (6, 5)])
def test_flat_images_are_shown_in_the_model_s_shape(shape, tmp_path):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(30, 4))
    page.write(
        tmp_path, VAE(encoder, nn.Linear(2, 30), Bernoulli(), shape=shape, nz=2).eval(), torch.rand(5, 30)
    )
    assert tuple(read(tmp_path)[1]["shape"]) == (1, *shape)[-3:]


def test_large_numbers_are_whole():
    assert [records._counted(n, "epoch") for n in (1, 2.25, 100, 1237, 2048)] == [
        "1 epoch", "2.25 epochs", "100 epochs", "1,237 epochs", "2,048 epochs"]  # fmt: skip


def test_a_page_of_few_images(tmp_path):
    model = own_model(nn.Linear(3, 12), Bernoulli(), (12,))
    page.write(tmp_path, model, Split(torch.rand(1, 12), torch.tensor([7])))
    _, data = read(tmp_path)
    assert [len(data["codes"]), data["labels"]] == [1, [7]]
    assert [axis["variance"] for axis in data["axes"]] == [0] * 5
    with pytest.raises(ValueError, match=r"test holds no images; expected at least 1"):
        page.write(tmp_path, model, Split(torch.rand(0, 12), None))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1, 2, 3], TypeError, r"test.labels are .*list.*; expected .*int64 \[4\]"),
        (torch.arange(2), ValueError, r"test.labels are int64 \[2\].*; expected .*\[4\]"),
        (torch.zeros(4, 3, dtype=torch.int64), ValueError, r"test.labels are int64 \[4, 3\]"),
        (torch.rand(4), ValueError, r"test.labels are float32 \[4\]"),
    ],
)
def test_labels_of_another_form_are_named(labels, error, message, tmp_path):
    with pytest.raises(error, match=message):
        page.write(
            tmp_path, own_model(nn.Linear(3, 12), Bernoulli(), (12,)), Split(torch.rand(4, 12), labels)
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["decoder.weight", "head.bias"])
def test_a_model_that_is_not_finite_has_no_page(name, tmp_path):
    model = own_model(nn.Linear(3, 12), Bernoulli(), (12,))
    model.get_parameter(name).data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="the model's weights or its chain's state are not finite"):
        page.write(tmp_path, model, torch.rand(4, 12))


def test_the_picture_of_all_originals_is_no_higher_than_browsers_draw(tmp_path):
    model = own_model(nn.Linear(3, 400), Bernoulli(), (1, 200, 2))
    page.write(tmp_path, model, torch.rand(400, 1, 200, 2))
    data = read(tmp_path)[1]
    assert len(data["codes"]) == 150
    header = base64.b64decode(data["originals"].split(",")[1])[:24]
    assert int.from_bytes(header[20:24], "big") == 30_000
    tall = own_model(nn.Linear(3, 2000), Bernoulli(), (1, 1000, 2))
    page.write(tmp_path, tall, torch.rand(40, 1, 1000, 2))
    assert len(read(tmp_path)[1]["codes"]) == 30


def test_a_page_is_written_of_plain_images_into_a_folder_by_name(tmp_path):
    model, images = own_model(nn.Linear(3, 12), Bernoulli(), (12,)), torch.rand(4, 12)
    expected = page.write(tmp_path, model, Split(images)).read_text()
    assert page.write(str(tmp_path), model, images).read_text() == expected
    parts = Split(images), Split(images), Split(images[:2], torch.tensor([3, 0]))
    own = data.Dataset("own", "", *parts, classes=("w", "x", "y", "z"))
    path = page.write(tmp_path / "a" / "new", model, own)
    known = read(path.parent)[1]
    assert (known["labels"], known["classes"]) == ([3, 0], ["w", "x", "y", "z"])
    with pytest.raises(TypeError, match=r"test is float64 \[4, 12\] \(ndarray\); expected a tensor"):
        page.write(tmp_path, model, images.double().numpy())


def test_the_bound_is_shown_with_its_number_of_images():
    model, record = own_model(nn.Linear(3, 12), Bernoulli(), (12,)), {"options": {"binarize": "none"}}
    values = {"test_importance_bound": 5.0, "test_importance_bound_images": 60}
    assert "on average; 60 test images<" in records.scores(model, record, values)
    del values["test_importance_bound_images"]  # a run of old
    assert "on average<" in records.scores(model, record, values)


def test_large_pictures_are_shown_smaller(tmp_path):
    for shape, expected in {
        (3, 96, 96): (3, 96, 96),
        (3, 512, 512): (3, 86, 86),  # by 6; the last blocks are cut
        (1, 300, 160): (1, 150, 80),
        (1, 1, 60_000): (1, 1, 20_000),
    }.items():
        images = torch.randint(256, (2, *shape), dtype=torch.uint8)
        pictures = Pixels.of(images).pictures(images)
        assert pictures.shape == (2, *expected)
        blocks = [-(-a // b) for a, b in zip(shape, expected, strict=True)]
        mean = images[:, :, : blocks[1], : blocks[2]].double().mean((2, 3))
        torch.testing.assert_close(pictures[:, :, 0, 0].double(), mean, rtol=0, atol=0.5001)
    images = torch.randint(256, (60, 3, 512, 512), dtype=torch.uint8)
    model = own_model(nn.Linear(3, 3), Gaussian(), (3,))
    model.encode = lambda x: torch.zeros(len(x), 3)
    model.decode = lambda z: images[torch.arange(len(z)) % 60]
    assert page.write(tmp_path, model, Split(images, None)).stat().st_size < 6e6  # and yet it is noise


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"options": []}, "options is [] (list); expected a dict"),
        ({"resumed": 5}, "resumed is 5 (int); expected a list"),
        ({"versions": [1]}, "versions is [1] (list); expected a dict"),
    ],
)
def test_a_damaged_record_is_told(damage, message, run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | damage))
    with pytest.raises(CheckpointError, match=re.escape(f"config.json is damaged; {message}")):
        view.write(tmp_path, models.load(run), torch.rand(4, 1, 8, 8))


def test_an_aim_is_that_of_a_step_size_that_adapts(run):
    record = json.loads((run / "config.json").read_text())
    lines = [{"epoch": 1.0, "acceptance_rate": 0.5}]
    assert records.curves(record, lines)[0]["aim"]["value"] == 0.574
    record["options"]["adaptation_rate"] = 0.0
    assert records.curves(record, lines)[0]["aim"] is None


def test_a_record_without_versions_shows_none(run, tmp_path):
    shutil.copytree(run, copy := tmp_path / "copy")
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(record | {"versions": None}))
    assert view.main([str(copy)]) == 0
    assert "<dt>Versions" not in read(copy)[0]
    assert "<dt>Versions" in read(run)[0]


def test_weights_beyond_16_bits_and_hooks_are_named():
    model = own_model(nn.Linear(3, 6), Bernoulli(), (6,))
    hook = model.decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(CannotRun, match="its Linear has a hook, or a forward of its own"):
        network(model)
    hook.remove()
    model.decoder.forward = lambda z: z
    with pytest.raises(CannotRun, match="a forward of its own"):
        network(model)
    del model.decoder.forward
    with torch.no_grad():
        model.decoder.weight[0, 0] = 1e5
    with pytest.raises(CannotRun, match="too large for 16 bits"):
        network(model)


def test_pictures_of_all_forms():
    assert Pixels.of(torch.zeros(2, 64, dtype=torch.uint8)) == ((1, 8, 8), 0, 1)
    assert Pixels.of(torch.zeros(2, 6)) == ((1, 1, 6), 0, 1)
    signed = Pixels.of(torch.tensor([-1.0, 0, 3]).expand(2, 3, 1, 3))
    assert signed == ((3, 1, 3), -1, 3)
    assert signed.pictures(torch.tensor([-1.0, 0, 3]).expand(2, 3, 1, 3))[0, 0].tolist() == [[0, 64, 255]]
    assert Pixels((4, 1, 1), 0, 1).pictures(torch.rand(5, 4)).shape == (5, 1, 1, 1)


def test_the_picture_s_file_holds_its_pixels():
    from matplotlib import image

    pixels = torch.randint(256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for p in (pixels, pixels[:1]):
        read_back = image.imread(io.BytesIO(base64.b64decode(data_uri(p).split(",")[1])), format="png")
        found = (torch.from_numpy(read_back) * 255).round().to(torch.uint8).view(4, 5, -1).permute(2, 0, 1)
        assert torch.equal(found, p)
