"""The page on models in Python runs as it stands, section by section, and what other libraries do with a model is right."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch

import lae_fast
from lae_fast.models import Architecture, build

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs code of the page; returns its names. What those libraries warn of is not ours."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    build(Architecture(nx=64, nz=2, nh=8, depth=1)).save("runs/first")
    names = {"__name__": "page"}

    def run(*titles, part=slice(None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for title in titles:
                for code in SECTIONS[title][part]:
                    exec(code, names)
        return names

    run("Load, use, save", "Networks of your own")
    return run


def test_a_model_is_loaded_and_trained(run):
    names = run()
    assert names["between"].shape == (4, 5, 64)
    assert len(names["losses"]) == 2
    assert torch.equal(
        lae_fast.load("own", encoder=names["encoder"], decoder=names["decoder"]).phi, names["model"].phi
    )


def test_the_hub(run):
    pytest.importorskip("huggingface_hub")
    before = run()["model"]
    assert torch.equal(run("The Hugging Face Hub")["model"].phi, before.phi)


def test_lightning_trains_validates_and_keeps_the_chain(run):
    pytest.importorskip("lightning")
    before = run()["model"].state_dict()["n_decisions"].item()
    names = run("Lightning")
    model, trainer = names["model"], names["trainer"]
    # 2 epochs x 4 minibatches x 16 images x 2 steps: validation has moved no chain
    assert model.n_decisions.item() - before == 2 * 4 * 16 * 2
    assert 0 < trainer.callback_metrics["negative_elbo"].item() < 100
    kept = torch.load("lit.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(kept[f"model.{name}"], t) for name, t in model.state_dict().items())
    again = names["Lit"](copy.deepcopy(model).train())
    with torch.no_grad():
        again.model.phi.zero_()
    longer = names["lightning"].Trainer(
        max_epochs=3, accelerator="cpu", enable_progress_bar=False, logger=False, enable_model_summary=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        longer.fit(again, names["batches"], ckpt_path="lit.ckpt")
    assert again.model.n_decisions.item() - before == 3 * 4 * 16 * 2
    assert again.model.phi.norm() > 0


def test_accelerate_trains(run):
    pytest.importorskip("accelerate")
    before = copy.deepcopy(run()["model"].state_dict())
    after = run("accelerate")["model"].state_dict()
    assert (after["n_decisions"] - before["n_decisions"]).item() == 4 * 16 * 2
    assert not torch.equal(after["decoder.0.weight"], before["decoder.0.weight"])


def test_a_compiled_decoder_is_the_same(run):
    model, z = run()["model"], torch.randn(5, 2)
    decode = torch.compile(model.decode, backend="eager", fullgraph=True)
    torch.testing.assert_close(decode(z), model.decode(z))


def test_exported_parts_take_any_number_of_images(run):
    names = run("Compile, export, ONNX", part=slice(1))
    model, x, z = names["model"], names["images"][:7], torch.randn(7, 2)
    torch.testing.assert_close(names["encoder"].module()(x), model.encode(x))
    torch.testing.assert_close(names["decoder"].module()(z), model.decode(z))


def test_exported_parts_of_the_report_s_network(run):
    names = run("Compile, export, ONNX", part=slice(1))
    model = build(Architecture(nx=64, nz=2, nh=8, depth=1)).eval()
    for part, given in (("encode", names["images"].flatten(1)), ("decode", torch.randn(64, 2))):
        exported = torch.export.export(
            names["Part"](model, part).eval(), (given[:3],), dynamic_shapes=(names["n"],)
        )
        torch.testing.assert_close(
            exported.module()(given), getattr(model, part)(given), atol=1e-5, rtol=1e-5
        )


def test_onnx(run):
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    runtime = pytest.importorskip("onnxruntime")
    names = run("Compile, export, ONNX")
    model, x, z = names["model"], names["images"][:7], torch.randn(7, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = torch.onnx.export(
            names["Part"](model, "encode").eval(), (x[:3],), dynamic_shapes=(names["n"],)
        )
    encoder.save("encoder.onnx")
    for file, given, expected in (("encoder", x, model.encode(x)), ("decoder", z, model.decode(z))):
        session = runtime.InferenceSession(f"{file}.onnx")
        (got,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), expected.detach(), atol=1e-5, rtol=1e-5)
