"""The page of a run: one file with nothing beside it, whose decoder is PyTorch's up to the rounding of its weights; and the same
page in a browser, where there is one."""

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
from commands import SMALL_RUN
from PIL import Image
from torch import nn

from lae_fast import VAE, data, models, train, view
from lae_fast.data import Split
from lae_fast.models.likelihood import Bernoulli, DiscretizedLogistic, Gaussian, Likelihood
from lae_fast.view import page, records
from lae_fast.view.network import CannotRun, network
from lae_fast.view.pixels import Pixels, data_uri

ARGUMENTS = [*SMALL_RUN, "--nz", "3", "--batch-size", "100", "--epochs", "2", "--log-every", "2"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the digits, which leaves its page."""
    folder = tmp_path_factory.mktemp("runs") / "first <run>"
    assert train.main([*ARGUMENTS, "--output-dir", str(folder)]) == 0
    return folder


def read(folder):
    """A page, and the data within."""
    text = (folder / "view.html").read_text(encoding="utf-8")
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def rounded(model):
    """The model with the weights that the page has."""
    with torch.no_grad():
        for p in (*model.parameters(), *model.buffers()):
            p.copy_(p.half() if p.is_floating_point() else p)
    return model


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


def own_model(decoder, likelihood, shape, nz=3):
    """A VAE around a decoder, in eval mode."""
    nx = torch.Size(shape).numel()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(nx, 4))
    return VAE(encoder, decoder, likelihood, nx=nx, nz=nz, d=4).eval()


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


# ---- in a browser ----

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright here, which drives a browser")
    with driver.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def opened(browser, run):
    """Opens a page at a window's size, and has seen no word on the console in the end."""
    said, pages = [], []

    def open_page(folder=run, width=1280, height=900, **options):
        tab = browser.new_page(
            viewport={"width": width, "height": height}, reduced_motion="reduce", **options
        )
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        tab.goto((folder / "view.html").as_uri())
        tab.wait_for_function("originals.complete && due === 0")
        pages.append(tab)
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert said == []


def settle(tab):
    tab.wait_for_function("due === 0")


def picture(tab, name="picture"):
    return tab.evaluate(f"byId('{name}').toDataURL()")


def z_of(tab):
    return torch.tensor(tab.evaluate("state.z"))


@pytest.mark.slow
def test_a_browser_decodes_as_pytorch_does(opened, run):
    tab, model = opened(), rounded(models.load(run / "best.safetensors"))
    z = 2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    found = torch.tensor(tab.evaluate("(all) => all.map((z) => [...decode(z)])", z.tolist()))
    torch.testing.assert_close(found, model.decode(z).detach().flatten(1), rtol=0, atol=1e-5)
    grey = "[...byId('picture').getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 === 0)"
    shown = torch.tensor(tab.evaluate(grey)) / 255
    torch.testing.assert_close(
        shown, model.decode(z_of(tab)[None]).detach().flatten(), rtol=0, atol=0.51 / 255
    )


@pytest.mark.slow
def test_sliders_and_buttons_change_the_picture(opened):
    tab = opened()
    before, z = picture(tab), z_of(tab)
    tab.get_by_role("slider", name="z₂").focus()
    for _ in range(5):
        tab.keyboard.press("PageUp")
    settle(tab)
    moved = z_of(tab) - z
    assert moved[1] > 0.1
    assert moved[[0, 2]].tolist() == [0, 0]
    assert picture(tab) != before
    assert tab.inner_text("#caption") == "no test image"
    tab.get_by_text("All zero").click()
    settle(tab)
    assert z_of(tab).tolist() == [0, 0, 0]
    tab.get_by_text("Draw from the prior").click()
    settle(tab)
    assert z_of(tab).abs().min() > 0
    samples = tab.get_attribute("#samples img", "src")
    tab.get_by_text("Draw again").click()
    assert tab.get_attribute("#samples img", "src") != samples


def dot_of(tab, code):
    """Where on the screen a code's dot is."""
    box = tab.locator("#plane .dot").nth(code).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.slow
def test_a_dot_shows_its_code_and_a_drag_interpolates(opened):
    tab = opened()
    codes = torch.tensor(tab.evaluate("page.codes"))
    tab.locator("#plane").scroll_into_view_if_needed()
    low, high = (int(v) for v in (codes @ torch.tensor(tab.evaluate("axes[3].direction"))).argsort()[[0, -1]])
    before = picture(tab, "original")
    tab.mouse.click(*dot_of(tab, low))
    settle(tab)
    assert torch.equal(z_of(tab), codes[low])
    assert picture(tab, "original") != before
    assert tab.inner_text("#caption") == f"test image {low + 1}, class {tab.evaluate('page.labels')[low]}"
    tab.mouse.move(*dot_of(tab, low))
    tab.mouse.down()
    tab.mouse.move(*dot_of(tab, high), steps=4)
    tab.mouse.up()
    settle(tab)
    assert tab.evaluate("[state.a, state.b]") == [low, high]
    tab.locator("#between").fill("0.25")
    settle(tab)
    torch.testing.assert_close(z_of(tab), codes[low] + 0.25 * (codes[high] - codes[low]))
    third = tab.evaluate("(i) => byId('strip').children[i].toDataURL()", 2)  # of nine: a quarter of the way
    assert third == picture(tab)


@pytest.mark.slow
def test_the_keyboard_alone_reaches_everything(opened):
    tab = opened()
    tab.locator("#samples").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[9]")
    tab.locator("#plane").focus()
    tab.keyboard.press("ArrowRight")
    settle(tab)
    assert tab.get_attribute("#between", "aria-valuetext") == "not on the way from A to B"
    first = tab.evaluate("state.code")
    tab.keyboard.press("a")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("b")
    settle(tab)
    assert tab.evaluate("[state.a, state.b]") == [first, tab.evaluate("state.code")]
    assert first != tab.evaluate("state.code")
    assert tab.inner_text("#said").endswith("is B")
    stops = set()
    tab.evaluate("document.activeElement.blur()")
    for _ in range(60):
        tab.keyboard.press("Tab")
        stops.add(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
    wanted = {"samples", "again", "reconstructions", "across", "up", "plane", "INPUT", "random", "origin"}
    assert wanted | {"between", "mark-a", "mark-b", "SUMMARY"} <= stops


@pytest.mark.slow
def test_the_first_click_on_a_picture_chooses_it(opened):
    """The grid has no focus yet, its first row is above the window, and nothing may move under the pointer."""
    tab = opened(width=1000, height=500)
    tab.evaluate("scrollTo(0, byId('samples').children[8].getBoundingClientRect().top + scrollY)")
    box = tab.locator("#samples > *").nth(20).bounding_box()
    tab.mouse.move(box["x"] + 3, box["y"] + 3)
    before = tab.evaluate("scrollY")
    tab.mouse.down()
    tab.wait_for_timeout(50)
    assert tab.evaluate("scrollY") == before > 0
    tab.mouse.up()
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[20]")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[21]")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 200, 2), (1, 2, 200)])
def test_long_thin_images_stay_on_the_screen(shape, opened, tmp_path):
    model = own_model(nn.Linear(3, 400), Bernoulli(), shape)
    page.write(tmp_path, model, torch.rand(40, *shape))
    tab = opened(tmp_path)
    for place, least in (("#picture", 30), ("#samples img", 7), ("#strip canvas", 7)):
        box = tab.locator(place).first.bounding_box()
        assert least < box["height"] < 600


@pytest.mark.slow
def test_without_javascript_no_control_is_shown(browser, run):
    tab = browser.new_page(java_script_enabled=False)
    tab.goto((run / "view.html").as_uri())
    assert not any(control.is_visible() for control in tab.locator("button, select, input, svg").all())
    assert tab.locator("noscript p").is_visible()
    assert tab.locator("#samples img").first.is_visible()
    tab.close()


@pytest.mark.slow
def test_one_class_alone_and_other_axes(opened):
    tab = opened()
    tab.get_by_role("button", name="3", exact=True).click()
    labels = tab.evaluate("page.labels")
    assert tab.locator(".dot.faded").count() == sum(label != 3 for label in labels)
    tab.locator("#plane").click()
    settle(tab)
    assert labels[tab.evaluate("state.code")] == 3
    before = dot_of(tab, 0)
    tab.select_option("#across", "0")
    settle(tab)
    assert dot_of(tab, 0) != before
    assert tab.evaluate("page.axes[0].name") in tab.inner_text("#shown").replace("₁", "1").replace(
        "₂", "2"
    ).replace("₃", "3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_a_narrow_screen_needs_no_sideways_scroll(opened, scheme):
    tab = opened(width=360, height=740, color_scheme=scheme)
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 250, 248)") == (scheme == "light")


@pytest.mark.slow
def test_every_control_has_a_name(opened):
    tab = opened()
    nameless = tab.evaluate(
        "[...document.querySelectorAll('button, select, input, [tabindex], [role=img]')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent).trim()).map((e) => e.outerHTML)"
    )
    assert nameless == []


def own_page(run, folder, model, images):
    """The page of another model, with the records of a run that has no scores yet."""
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, folder)
    page.write(folder, model, Split(images, None))


@pytest.mark.slow
def test_classes_have_their_names(opened, run, tmp_path):
    model = own_model(nn.Linear(3, 12), Bernoulli(), (12,))
    test = Split(torch.rand(6, 12), torch.tensor([0, 2, 2, 2, 2, 2]))
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path)
    page.write(tmp_path, model, test, classes=("blue", "green", "<b>red</b>"))
    tab = opened(tmp_path)
    assert tab.locator("#legend button").all_inner_texts() == ["blue", "<b>red</b>"]
    codes = torch.tensor(tab.evaluate("page.codes"))
    tab.locator("#plane").scroll_into_view_if_needed()
    along = codes @ torch.tensor(tab.evaluate("axes[3].direction"))
    ends = along.argsort()[[0, -1]]  # no other dot lies on these
    tab.mouse.click(*dot_of(tab, next(k for k in ends.tolist() if k != 0)))
    settle(tab)
    assert tab.inner_text("#caption").endswith("class <b>red</b>")


@pytest.mark.slow
def test_a_page_without_its_decoder_shows_everything_else(opened, run, tmp_path):
    model = own_model(nn.Sequential(nn.Linear(1, 64), nn.Softplus()), Gaussian(), (64,), nz=1)
    own_page(run, tmp_path, model, torch.randint(256, (30, 64), dtype=torch.uint8))
    tab = opened(tmp_path)
    assert "it does not know the layer Softplus" in tab.inner_text("#problem")
    assert tab.locator("#sliders").is_hidden()
    assert tab.locator("#charts svg").count() == 3
    tab.locator("#plane").click()
    settle(tab)
    assert tab.inner_text("#caption").startswith("test image ")
    assert "no scores yet" in tab.inner_text("main")


@pytest.mark.slow
def test_one_large_image(opened, run, tmp_path):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(512 * 512, 4))
    model = VAE(encoder, nn.Linear(3, 512 * 512, bias=False), Gaussian(), shape=(1, 512, 512), nz=3).eval()
    image = torch.zeros(1, 1, 512, 512)
    image[..., :256, 256:] = 1
    own_page(run, tmp_path, model, image)
    tab = opened(tmp_path)
    tab.locator("#original").scroll_into_view_if_needed()
    assert "NaN" not in tab.inner_text("main")
    assert tab.evaluate("[state.a, state.b]") == [0, 0]
    size = "[byId('original').width, byId('original').height]"
    assert tab.evaluate(size) == [128, 128]
    shown = tab.evaluate("[...byId('original').getContext('2d').getImageData(0, 0, 128, 128).data]")
    assert torch.equal(torch.tensor(shown).view(128, 128, 4)[..., 0], 255 * image[0, 0, ::4, ::4].long())


@pytest.mark.slow
def test_colour_images_and_values_beyond_0_to_1(opened, run, tmp_path):
    nx = 3 * 4 * 6
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(nx, 4))
    model = VAE(encoder, nn.Linear(2, nx), Gaussian(), shape=(3, 4, 6), nz=2).eval()
    images = torch.rand(30, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 4 - 2  # -2 to 2
    own_page(run, tmp_path, model, images)
    tab = opened(tmp_path)
    low, high = images.min(), images.max()
    rgba = "(id) => [...byId(id).getContext('2d').getImageData(0, 0, 6, 4).data]"
    for name, expected in {"picture": rounded(model).decode(z_of(tab)[None]), "original": images[:1]}.items():
        shown = torch.tensor(tab.evaluate(rgba, name)).view(4, 6, 4)[..., :3].permute(2, 0, 1)
        scaled = 255 * ((expected.detach().view(3, 4, 6) - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(shown.float(), scaled, rtol=0, atol=0.51)
