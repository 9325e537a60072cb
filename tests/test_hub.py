"""The Hugging Face Hub, without a network: what would be uploaded is put into a folder, and downloaded from there."""

import inspect
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

import lae_fast
from lae_fast import hub
from lae_fast.models import Architecture, build


def model():
    torch.manual_seed(0)
    return build(Architecture(nx=16, nz=2, nh=8, depth=1), n_steps=3)


def same(a, b):
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_a_folder_serves_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._pretrained.cache_clear()
    own = model()
    own.save(tmp_path)
    assert same(hub.from_pretrained(tmp_path), own)
    with pytest.raises(ImportError, match=r"pip install .lae_fast\[hub\]."):
        hub.push_to_hub(own, "me/digits")


def test_a_folder_takes_no_options_of_the_download(tmp_path):
    model().save(tmp_path)
    with pytest.raises(ValueError, match="is a folder, which takes no revison, token; expected parts"):
        hub.from_pretrained(tmp_path, revison="v9", token="x")


@pytest.fixture
def library(monkeypatch):
    hub._pretrained.cache_clear()
    return pytest.importorskip("huggingface_hub")


def test_what_is_saved_has_a_card_and_a_config(library, tmp_path):
    own = model()
    hub.save_pretrained(own, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["options"]["n_steps"] == 3
    card = (tmp_path / "README.md").read_text()
    assert "lae_fast" in card
    assert "license" not in card  # which the owner of the weights chooses
    assert same(lae_fast.load(tmp_path), own)


def test_there_and_back(library, tmp_path, monkeypatch):
    cloud, own = tmp_path / "cloud", model()

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **_):
            shutil.copytree(folder_path, cloud / repo_id)
            return f"https://example.org/{repo_id}"

    signature = inspect.signature(library.hf_hub_download)

    def download(repo_id, filename, **options):
        signature.bind(repo_id, filename, **options)  # it takes no other ones
        return str(cloud / repo_id / filename)

    monkeypatch.setattr(library.hub_mixin, "HfApi", Api)
    monkeypatch.setattr(library.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr(library, "hf_hub_download", download)
    assert hub.push_to_hub(own, "me/digits", private=True) == "https://example.org/me/digits"
    loaded = hub.from_pretrained("me/digits", revision="main")
    assert same(loaded, own)
    assert (loaded.n_steps, loaded.training) == (3, False)
    with pytest.raises(TypeError, match="model is Linear"):
        hub.push_to_hub(torch.nn.Linear(1, 1), "me/digits")
