"""Trained models on the Hugging Face Hub, by huggingface_hub's mixin; it is imported where it is used."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from lae_fast import checkpoint, checks
from lae_fast.models import Autoencoder, load
from lae_fast.models.autoencoder import WEIGHTS


def push_to_hub(model: Autoencoder, name: str, **options: Any) -> str:
    """Upload what `model.save` writes, its options as config.json, and a model card.

    Args:
        name: of the repository, "owner/name"; it is made if there is none.
        options: those of `huggingface_hub.ModelHubMixin.push_to_hub`: private, token, commit_message, branch, ...

    Returns:
        The commit's URL.

    Raises:
        ImportError: huggingface_hub is missing: `pip install "lae_fast[hub]"`.
        ValueError: `model.save` refuses the model.
    """
    return _pretrained()(model).push_to_hub(name, **options)


def save_pretrained(model: Autoencoder, folder: str | Path) -> None:
    """Write into a folder what `push_to_hub` uploads; raises as it does."""
    _pretrained()(model).save_pretrained(checks.path("folder", folder))


def from_pretrained(name: str | Path, **options: Any) -> Autoencoder:
    """A trained model from the Hub, or from a folder that `save_pretrained` or `model.save` wrote: on the CPU, in eval mode.

    Args:
        name: "owner/name", or a folder.
        options: those of `huggingface_hub.ModelHubMixin.from_pretrained`: revision, token, cache_dir, local_files_only, ...; and
            those of `lae_fast.load`: encoder, decoder, likelihood.

    Raises:
        ImportError: huggingface_hub is missing: `pip install "lae_fast[hub]"`.
        ValueError: a folder is given, and options of the download.
        CheckpointError: as of `lae_fast.load`; what the download itself raises is huggingface_hub's.

    Example:
        >>> import tempfile
        >>> from lae_fast import hub, models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=8, depth=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(folder)
        ...     torch.equal(hub.from_pretrained(folder).phi, model.phi)
        True
    """
    name = checks.path("name", name)
    parts = {part: options.pop(part, None) for part in ("encoder", "decoder", "likelihood")}
    if name.is_dir():
        if options:
            raise ValueError(
                f"{name} is a folder, which takes no {', '.join(options)}; expected parts of the model alone"
            )
        return load(name, **parts)
    return _pretrained().from_pretrained(name.as_posix(), **options, parts=parts).model


@functools.cache
def _pretrained() -> Any:
    """The class that huggingface_hub saves and loads: it holds a model."""
    try:
        from huggingface_hub import ModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError('the Hub needs huggingface_hub: pip install "lae_fast[hub]"') from error

    class Pretrained(ModelHubMixin, library_name="lae_fast", tags=["langevin-autoencoder"]):
        # Not `model`: the mixin hands what config.json holds under an argument's name to the download.
        def __init__(self, autoencoder: Autoencoder) -> None:
            if not isinstance(autoencoder, Autoencoder):
                raise TypeError(f"model is {checks.describe(autoencoder)}; expected an LAE, VAE or Hoffman")
            self.model = autoencoder

        def _save_pretrained(self, folder: Path) -> None:
            self.model.save(folder)
            facts = checkpoint.load_weights(folder / WEIGHTS)[1]
            (folder / "config.json").write_text(json.dumps(facts, indent=2))

        @classmethod
        def _from_pretrained(cls, *, model_id: str, parts: dict[str, Any], **options: Any) -> Pretrained:
            return cls(load(hf_hub_download(model_id, WEIGHTS, **options), **parts))

    return Pretrained
