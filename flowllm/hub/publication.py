"""Models for others: the card of a saved model or pair, and its upload to a hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flowllm.errors import UserError, one_line
from flowllm.hub.card import CARD_FILE, LIBRARY, card_text, check_weights
from flowllm.hub.locate import ADAPTER_FILE, MODEL_FILES, PRIOR, REFINER, is_pair, local_folder
from flowllm.system.documents import parse_json

_TAGS = ("crystals", "materials", "flow-matching")
_PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def push_to_hub(
    folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a prior, a refiner or a pair of both to the Hugging Face hub.

    The repository is made if it is not there. Weights are safetensors files, and other files are
    uploaded only if a model needs them. A folder without a model card gets one on the hub.

        flowllm.push_to_hub("runs/prior/model", "me/my-prior")
        FlowLLM.from_pretrained("me/my-prior")

    Args:
        folder: of a model or a finished training, or what `FlowLLM.save_pretrained` wrote.
        repo_id: `OWNER/NAME` on the hub.
        private: make a private repository; an existing one stays as it is.
        token: access token of the hub; None: the one that `hf auth login` stored.

    Returns:
        The address of the repository.

    Raises:
        UserError: if the folder holds no model, holds pickled weights, has weights other than its
            card says, or is an adapter on a base that only this machine has; if the name is no hub
            id; or if the hub cannot be reached or refuses.
    """
    # Slow to import, and nothing else of this package uploads.
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_repo_id(repo_id)
    place = local_folder(folder)
    _check(place)
    files = sorted(
        path for pattern in MODEL_FILES for path in place.rglob(pattern) if path.is_file()
    )
    operations = [
        CommitOperationAdd(path.relative_to(place).as_posix(), path.resolve()) for path in files
    ]
    if not (place / CARD_FILE).is_file():
        text = model_card(place, repo_id)
        operations.append(CommitOperationAdd(CARD_FILE, text.encode()))
    api = HfApi(token=token, library_name=LIBRARY)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message="Upload a model of FlowLLM")
    except LocalTokenNotFoundError as error:
        raise UserError("the hub needs an access token; give one, or `hf auth login`") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise UserError(f"{repo_id} cannot be uploaded: {one_line(error)}") from error
    return str(url)


def check_repo_id(repo_id: str) -> None:
    """Check that a name can be a repository of a hub.

    Args:
        repo_id: `OWNER/NAME`.

    Raises:
        UserError: if it cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no hub id; give OWNER/NAME") from error
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id!r} names no owner; give OWNER/NAME")


def model_card(folder: Path, name: str) -> str:
    """Return the card of a saved model or pair, from what its files say.

    Args:
        folder: of a prior, a refiner, or a pair of `prior/` and `refiner/`.
        name: of the model, for the title.

    Returns:
        The text of a README.md.

    Raises:
        UserError: if the folder holds no weights, or a damaged file.
    """
    if is_pair(folder):
        roles = {role: folder / role for role in (PRIOR, REFINER) if (folder / role).is_dir()}
    else:
        roles = {PRIOR if (folder / "prior.json").is_file() else REFINER: folder}
    what = " and ".join(
        {
            PRIOR: "a language model that writes crystals as text",
            REFINER: "a Riemannian flow-matching model that moves their atoms and cells",
        }[role]
        for role in roles
    )
    argument = "" if PRIOR in roles else "refiner="
    sections = {
        "": f"FlowLLM (Sriram et al. 2024, arXiv 2410.23405): {what}.",
        "Use": f"```python\nfrom flowllm import FlowLLM\n\n"
        f'model = FlowLLM.from_pretrained({argument}"{name}")\n```',
    }
    if PRIOR in roles:
        sections["Prior"] = _about_prior(roles[PRIOR])
    if REFINER in roles:
        sections["Refiner"] = _about_refiner(roles[REFINER])
    sections["Limits"] = (
        "This card was made from the files of the model; no figures were measured for it. A "
        "generated crystal need not be stable: relax it before you trust it."
    )
    return card_text(folder, name=name, sections=sections, tags=_TAGS)


def _check(folder: Path) -> None:
    """Check that a folder holds a model that others can load."""
    pickled = sorted(p.name for p in folder.rglob("*") if p.suffix.lower() in _PICKLED)
    if pickled:
        raise UserError(
            f"{folder} holds {pickled[0]}, which may be pickled: weights are safetensors files; "
            "remove it, or save the model anew"
        )
    if not any(folder.rglob("*.safetensors")):
        raise UserError(f"{folder} holds no weights (*.safetensors); give the folder of a model")
    check_weights(folder)
    for role in (PRIOR, REFINER):
        if is_pair(folder) and (folder / role).is_dir():
            check_weights(folder / role)
    for adapter in folder.rglob(ADAPTER_FILE):
        base = str(_json(adapter).get("base_model_name_or_path"))
        if Path(base).is_absolute() or Path(base).exists():
            raise UserError(
                f"{adapter} names a base that only this machine has ({base}); put the hub id of "
                "the base there, or upload the merged model (train-llm --merge)"
            )


def _about_prior(folder: Path) -> str:
    settings = _json(folder / "prior.json")
    info, text = settings.get("info") or {}, settings.get("text") or {}
    lines = [f"- text layout `{text.get('layout')}`, at most {text.get('max_atoms')} atoms"]
    if info.get("crystals"):
        lines.append(f"- trained on {info['crystals']:,} crystals")
    if info.get("conditions"):
        lines.append(f"- conditions: {', '.join(info['conditions'])}")
    if (folder / ADAPTER_FILE).is_file():
        base = _json(folder / ADAPTER_FILE).get("base_model_name_or_path")
        lines.append(f"- an adapter on `{base}`, which is loaded with it")
    return "\n".join(lines) + _recipe(info)


def _about_refiner(folder: Path) -> str:
    config = _json(folder / "config.json")
    network, base = config.get("network") or {}, config.get("base") or {}
    return "\n".join(
        [
            f"- {network.get('layers')} layers of width {network.get('width')}",
            f"- crystals of at most {config.get('max_atoms')} atoms, elements up to number "
            f"{network.get('max_atomic_number')}",
            f"- base `{base.get('kind')}`, cells in the chart `{config.get('chart')}`",
        ]
    )


def _recipe(info: Mapping[str, Any]) -> str:
    recipe = info.get("recipe")
    if not recipe:
        return ""
    return f"\n\nRecipe:\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False).rstrip()}\n```"


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}); save the model again"
        ) from error
